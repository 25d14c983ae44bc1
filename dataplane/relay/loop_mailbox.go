package relay

import "sync"

// mailbox is the one way into a loop from other threads. Its functions run in
// the order in which they were posted.
type mailbox struct {
	ring func() // makes the loop's wait return; called with mu held

	mu     sync.Mutex
	queue  []func()
	asleep bool // the loop is in its wait, or about to enter it
	closed bool
}

// mailboxKeep bounds the slots that an emptied queue keeps for reuse.
const mailboxKeep = 1024

// post appends f and wakes the loop if it sleeps. The loop's own thread never
// sees asleep, so its posts cost no system call.
func (m *mailbox) post(f func()) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return false
	}
	m.queue = append(m.queue, f)
	m.wakeLocked()
	return true
}

// doze announces that the loop is going to wait. It reports false when there
// is a reason not to.
func (m *mailbox) doze() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.asleep = len(m.queue) == 0 && !m.closed
	return m.asleep
}

// full says that there is a reason for a round: something was posted, or the
// loop is to end. Until doze whoever posts leaves it to the loop to ask.
func (m *mailbox) full() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.queue) > 0 || m.closed
}

func (m *mailbox) awake() {
	m.mu.Lock()
	m.asleep = false
	m.mu.Unlock()
}

// run calls what was posted before this round, reusing spare for what comes
// meanwhile. It returns the emptied queue, and whether the mailbox is closed:
// then nothing can be in it any more.
func (m *mailbox) run(spare []func()) (emptied []func(), closed bool) {
	m.mu.Lock()
	batch := m.queue
	m.queue = spare
	closed = m.closed
	m.mu.Unlock()

	for i, f := range batch {
		batch[i] = nil
		f()
	}
	if cap(batch) > mailboxKeep {
		return nil, closed
	}
	return batch[:0], closed
}

func (m *mailbox) close() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.closed = true
	m.wakeLocked()
}

func (m *mailbox) wakeLocked() {
	if m.asleep {
		m.asleep = false
		m.ring()
	}
}
