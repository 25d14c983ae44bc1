//go:build unix

package relay

// New starts n loops of the system's best kind, or none.
func New(n int) ([]Loop, error) { return NewWith(n, BatchAuto) }

// NewWith is New with a say in what the loops put off.
func NewWith(n int, b Batch) ([]Loop, error) {
	if err := b.Check(); err != nil {
		return nil, err
	}
	start := NewDefault
	if b == BatchOn {
		start = NewBatched
	}
	loops := make([]Loop, 0, n)
	for range n {
		l, err := start()
		if err != nil {
			for _, l := range loops {
				l.Close()
			}
			return nil, err
		}
		loops = append(loops, l)
	}
	return loops, nil
}
