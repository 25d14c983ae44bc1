package kube

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"sync"
	"time"

	"github.com/sallyport/sallyport"
)

// partingTime is how long the watches of a connection have to say why they end.
const partingTime = 300 * time.Millisecond

// farewells are the watches of one connection. Their end by a lock, an expiry or a shutdown
// is an event of theirs, so that clients of the API learn why: an answer that breaks
// off is to them as one that ends in order, and kubectl leaves with 0.
//
//	session over ─▶ the API server's answer breaks off ─▶ ERROR with a Status, end ─▶ the connection is closed
//	             └─▶ part waits for that, for partingTime at most ────────────────────────┘
type farewells struct {
	mu   sync.Mutex
	open int
	none chan struct{} // made by part, closed when none is open
}

// add makes an answer, a stream of events in JSON, one that says why it ends; whole is called
// once it has.
func (f *farewells) add(res *http.Response, whole func()) {
	f.mu.Lock()
	f.open++
	f.mu.Unlock()
	res.Body = &watch{ReadCloser: res.Body, ctx: res.Request.Context(), farewells: f, whole: whole}
}

// part waits until every watch has said its last word, or its time is over.
func (f *farewells) part() {
	f.mu.Lock()
	if f.open == 0 {
		f.mu.Unlock()
		return
	}
	none := make(chan struct{})
	f.none = none
	f.mu.Unlock()
	late := time.NewTimer(partingTime)
	defer late.Stop()
	select {
	case <-none:
	case <-late.C:
	}
}

func (f *farewells) drop() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.open--; f.open == 0 && f.none != nil {
		close(f.none)
		f.none = nil
	}
}

// watch is the body of a watch's answer.
type watch struct {
	io.ReadCloser
	ctx       context.Context
	farewells *farewells
	whole     func()
	within    bool   // of an event: its line has not ended
	last      []byte // what is left to say
	said      bool
	once      sync.Once
}

// Read meets io.Reader.
func (w *watch) Read(p []byte) (int, error) {
	if w.said {
		return w.rest(p)
	}
	n, err := w.ReadCloser.Read(p)
	if n > 0 {
		w.within = p[n-1] != '\n'
	}
	if err == nil || err == io.EOF || w.within {
		return n, err
	}
	why, ok := errors.AsType[*sallyport.Problem](context.Cause(w.ctx))
	if !ok {
		return n, err // the client has gone, or the API server
	}
	w.said, w.last = true, errorEvent(why)
	return n, nil
}

func (w *watch) rest(p []byte) (int, error) {
	if len(w.last) == 0 {
		return 0, io.EOF
	}
	n := copy(p, w.last)
	w.last = w.last[n:]
	return n, nil
}

// Close meets io.Closer: what was read has been written to the client.
func (w *watch) Close() error {
	w.once.Do(func() {
		if w.said && len(w.last) == 0 {
			w.whole()
		}
		w.farewells.drop()
	})
	return w.ReadCloser.Close()
}

// errorEvent is the event of a watch that ends before its time (metav1.WatchEvent).
func errorEvent(why *sallyport.Problem) []byte {
	event, _ := json.Marshal(struct { // strings and numbers only
		Type   string          `json:"type"`
		Object json.RawMessage `json:"object"`
	}{"ERROR", statusBody(codeOf(why), message(why), nil)})
	return append(event, '\n')
}
