package mysql

import (
	"bytes"
	"slices"
	"sync"

	"github.com/sallyport/sallyport"
)

// pending is a command that waits for its answer.
type pending struct {
	answer answer
	number int64    // of a PREPARE
	files  [][]byte // that the text lets the server ask for

	types *statement // of an EXECUTE that has types
	turn  int64      // of these

	resets bool // ends all statements
}

// pendingMost commands may wait; the next one waits with them.
const pendingMost = 1024

// talk is what both directions of a session know: which commands wait for an
// answer, the prepared statements, and whether the client answers a request for
// a file. Its methods may be called concurrently.
type talk struct {
	room chan struct{} // one for each pending command
	quit chan struct{} // closed when nobody waits any more
	once sync.Once

	mu         sync.Mutex
	queue      []pending
	now        pending // the last that was popped; none once it is a statement that is known
	statements map[uint32]*statement
	params     int  // of all statements
	asked      bool // for a file
	fileSeq    byte // of its first packet
}

func newTalk() *talk {
	return &talk{room: make(chan struct{}, pendingMost), quit: make(chan struct{}), statements: map[uint32]*statement{}}
}

// stop frees who waits for room.
func (t *talk) stop() { t.once.Do(func() { close(t.quit) }) }

// push takes a command that is about to pass.
func (t *talk) push(p pending) error {
	if p.answer == answerNone {
		return nil
	}
	select {
	case t.room <- struct{}{}:
	case <-t.quit:
		return refuse(faultKilled(), sallyport.ErrUnavailable, "the session has ended", "")
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.asked {
		return refuse(faultOutOfOrder(), sallyport.ErrInvalid, "malformed packet: a command where the server has asked for a file", "")
	}
	t.queue = append(t.queue, p)
	return nil
}

// pop gives the oldest command that is not answered.
func (t *talk) pop() (pending, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.queue) == 0 {
		return pending{}, false
	}
	p := t.queue[0]
	t.queue[0] = pending{}
	if t.queue = t.queue[1:]; len(t.queue) == 0 {
		t.queue = nil
	}
	<-t.room
	t.now = p
	return p, true
}

// busy says that a command waits for its answer.
func (t *talk) busy() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.queue) > 0
}

// ask is the server's request for a file. It is good only as the answer to a
// text that names the file, with nothing sent behind it.
func (t *talk) ask(p pending, name []byte, seq byte) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	named := false
	for _, f := range p.files {
		named = named || bytes.Equal(f, name)
	}
	if !named || len(t.queue) > 0 {
		return refuse(faultDenied(), sallyport.ErrDenied, "the database server asked for a file that the statement does not name", "somebody may have taken the server over: tell its administrator")
	}
	t.asked, t.fileSeq = true, seq
	return nil
}

// file says whether the client's next packet belongs to a file.
func (t *talk) file() (seq byte, is bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.fileSeq, t.asked
}

// asking says that the server has asked for a file that has not ended.
func (t *talk) asking() bool {
	_, is := t.file()
	return is
}

func (t *talk) fileEnded() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.asked = false
}

// prepared takes what the server made of a PREPARE.
func (t *talk) prepared(p pending, id uint32, params int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.now = pending{}
	t.forgetLocked(id)
	if len(t.statements) < statementsMost && t.params+params <= paramsMost {
		t.statements[id] = &statement{number: p.number, params: params}
		t.params += params
	}
}

// accepted takes that the server has answered without an error: it has read the
// values of an EXECUTE, or has ended the statements that it had made meanwhile too.
func (t *talk) accepted(p pending) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if p.resets {
		t.clearLocked()
	}
	if p.types != nil && p.types.turn == p.turn {
		p.types.taken = true
	}
}

// given says that a statement is known, or that none is that the server may have made
// already: no PREPARE waits for its answer.
func (t *talk) given(id uint32) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.statements[id] != nil || t.now.answer != answerPrepare &&
		!slices.ContainsFunc(t.queue, func(p pending) bool { return p.answer == answerPrepare })
}

// last takes that the client has had something done with the statement that the
// server has prepared last, whichever that is.
func (t *talk) last() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, st := range t.statements {
		st.types, st.turn, st.taken = nil, st.turn+1, false
		st.blind = st.blind || len(st.long) > 0
	}
}

// statement calls f with what is known of a statement, nil for an unknown one.
func (t *talk) statement(id uint32, f func(*statement)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	f(t.statements[id])
}

func (t *talk) forget(id uint32) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.forgetLocked(id)
}

func (t *talk) forgetLocked(id uint32) {
	if st := t.statements[id]; st != nil {
		t.params -= st.params
		delete(t.statements, id)
	}
}

// reset forgets all statements, as COM_RESET_CONNECTION does.
func (t *talk) reset() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.clearLocked()
}

func (t *talk) clearLocked() {
	clear(t.statements)
	t.params = 0
}
