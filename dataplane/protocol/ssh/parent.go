package ssh

import "sync"

// parent starts programs that end with this process, however it ends, and not
// before. Linux signals a dead parent's children when the thread that forked
// them ends (prctl(2), PR_SET_PDEATHSIG), and Go's threads come and go: so one
// thread forks them all, and stays while any of them lives. The zero value
// works.
type parent struct {
	once   sync.Once // of catchIgnored
	mu     sync.Mutex
	living int           // children, and those about to be
	births chan<- func() // to the thread; nil while nothing lives
}

// bear runs start on the thread. When it returns an error there is no child;
// else buried is called once the child has been reaped.
func (p *parent) bear(start func() error) error {
	p.once.Do(catchIgnored)
	p.mu.Lock()
	if p.living == 0 {
		births := make(chan func())
		p.births = births
		go deliver(births)
	}
	p.living++
	births := p.births
	p.mu.Unlock()

	born := make(chan error, 1)
	births <- func() { born <- start() } // open: what is about to be counts as living
	err := <-born
	if err != nil {
		p.buried()
	}
	return err
}

// buried lets the thread go after its last child.
func (p *parent) buried() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.living--; p.living == 0 {
		close(p.births)
		p.births = nil
	}
}
