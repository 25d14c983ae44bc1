//go:build unix

package relay

// New starts n loops of the system's best kind, or none.
func New(n int) ([]Loop, error) {
	loops := make([]Loop, 0, n)
	for range n {
		l, err := NewDefault()
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
