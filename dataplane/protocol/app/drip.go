package app

import (
	"net/http"
	"sync"
	"time"
)

// dripTime is how long what has come of an answer waits for more. There are two who
// make a browser's answer wait, the agent and the gateway.
const dripTime = 50 * time.Millisecond

// Drips are those of a server. The zero value works.
type Drips struct{ pool sync.Pool }

// Drip writes one answer whose length is known. net/http gathers 4 KiB of it before any
// goes out, and httputil.ReverseProxy, which flushes answers of an unknown length, lets
// it: what an application says slowly would come at the end.
//
//	head, or a piece, is written ─▶ dripTime ─▶ flushed, unless the answer is over
//
// Its timer is used again by later answers: most are over before it has run.
type Drip struct {
	drips *Drips
	timer *time.Timer

	mu    sync.Mutex          // held while the answer is written or flushed
	to    http.ResponseWriter // nil between answers
	out   Flusher             // of to
	wound bool                // the timer runs for what has been written
}

// Flusher lets go out what has been written.
type Flusher interface{ FlushError() error }

// Begin is for an answer whose head has been written to to. End must follow, and until
// then its body is written and flushed by the Drip alone, which out flushes. It returns
// nil, which has End too, where the head promises no body of a known length.
func (s *Drips) Begin(to http.ResponseWriter, out Flusher) *Drip {
	if l := to.Header()["Content-Length"]; len(l) != 1 || l[0] == "0" {
		return nil
	}
	d, ok := s.pool.Get().(*Drip)
	if !ok {
		d = &Drip{drips: s}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.to, d.out = to, out
	d.wind()
	return d
}

// wind starts the timer, with mu held.
func (d *Drip) wind() {
	d.wound = true
	if d.timer == nil {
		d.timer = time.AfterFunc(dripTime, d.late)
	} else {
		d.timer.Reset(dripTime)
	}
}

// Write writes a piece.
func (d *Drip) Write(p []byte) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	n, err := d.to.Write(p)
	if !d.wound {
		d.wind()
	}
	return n, err
}

// Flush lets go out what has been written.
func (d *Drip) Flush() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.wound = false
	return d.out.FlushError()
}

// late is called by the timer. One that comes too late to be stopped may find the next
// answer, which is then flushed early.
func (d *Drip) late() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.wound {
		d.wound = false
		_ = d.out.FlushError() // an error is also that of what follows
	}
}

// End is for the end of the answer's handler: nothing is flushed after it.
func (d *Drip) End() {
	if d == nil {
		return
	}
	d.mu.Lock()
	d.timer.Stop()
	d.to, d.out, d.wound = nil, nil, false
	d.mu.Unlock()
	d.drips.pool.Put(d)
}
