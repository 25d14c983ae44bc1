package database

import (
	"context"
	"errors"
	"io"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sallyport/sallyport"
)

// echoes is a protocol whose messages are bytes, and whose ends are told by a word.
type echoes struct {
	Relay
	bad     error // of PassUp, in place of all messages
	see     func(message []byte)
	stopped int
}

func (e *echoes) copy(to, from net.Conn, lostTo, lostFrom func(error) *Lost, moved func(int)) error {
	b := make([]byte, 64)
	for {
		n, err := from.Read(b)
		if err != nil {
			return lostFrom(err)
		}
		if _, err := to.Write(b[:n]); err != nil {
			return lostTo(err)
		}
		moved(n)
	}
}

func (e *echoes) PassUp() error {
	if e.bad != nil {
		return e.bad
	}
	if e.see == nil {
		return e.copy(e.Server, e.Client, LostServer, LostClient, e.Received)
	}
	b := make([]byte, 64)
	for {
		n, err := e.Client.Read(b)
		if err != nil {
			return LostClient(err)
		}
		e.see(b[:n])
		if err := e.Forward(b[:n]); err != nil {
			return err
		}
	}
}

func (e *echoes) PassDown() error {
	return e.copy(e.Client, e.Server, LostClient, LostServer, e.Sent)
}

func (e *echoes) tell(word string) {
	e.StopUp()
	e.StopDown()
	io.WriteString(e.Client, word)
}

func (e *echoes) Refused(err error) error     { e.tell("refused"); return err }
func (e *echoes) Ended(cause error) error     { e.tell("ended"); return cause }
func (e *echoes) ServerEnded(err error) error { e.tell("gone"); return err }

// speak writes a byte ten times, until it cannot.
func speak(conn net.Conn, every time.Duration) {
	for range 10 {
		time.Sleep(every)
		if _, err := io.WriteString(conn, "."); err != nil {
			return
		}
	}
}

// TestUnrecorded: what ended the session while it was recorded does not pass, and
// the client reads why.
func TestUnrecorded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, front := net.Pipe()
		back, server := net.Pipe()
		ctx, end := context.WithCancelCause(t.Context())
		full := errors.New("full")
		e := &echoes{Relay: Relay{Client: front, Server: back, Farewell: time.Second, Linger: time.Second}}
		e.see = func(message []byte) {
			if string(message) == "secret" {
				end(full)
			}
		}
		ended := make(chan error, 1)
		go func() { ended <- e.Run(ctx, e) }()
		passed := make(chan []byte, 1)
		go func() {
			b, _ := io.ReadAll(server)
			passed <- b
		}()
		for _, message := range []string{"known", "secret"} {
			if _, err := io.WriteString(client, message); err != nil {
				t.Fatal(err)
			}
		}
		if b, err := io.ReadAll(client); err != nil || string(b) != "ended" {
			t.Errorf("the client read %q, %v", b, err)
		}
		if b := <-passed; string(b) != "known" {
			t.Errorf("the server has read %q", b)
		}
		if err := <-ended; err != full {
			t.Error(err)
		}
	})
}

// TestRelay: each way to end is told by the protocol, in its time, and leaves
// nothing that runs.
func TestRelay(t *testing.T) {
	const farewell, linger, longest = time.Second, 30 * time.Second, time.Hour
	bad, locked := errors.New("malformed"), errors.New("locked")
	for name, tt := range map[string]struct {
		bad   error
		end   func(client, server net.Conn, cancel context.CancelCauseFunc)
		word  string
		after time.Duration
		is    func(error) bool
	}{
		"what cannot be passed on": {bad, nil, "refused", 0, func(err error) bool { return err == bad }},
		"a lock":                   {nil, func(_, _ net.Conn, cancel context.CancelCauseFunc) { cancel(locked) }, "ended", 0, func(err error) bool { return err == locked }},
		"the server":               {nil, func(_, server net.Conn, _ context.CancelCauseFunc) { server.Close() }, "gone", 0, func(err error) bool { l, ok := errors.AsType[*Lost](err); return ok && l.ByServer() }},
		"the client":               {nil, func(client, _ net.Conn, _ context.CancelCauseFunc) { client.Close() }, "", linger, func(err error) bool { return err == nil }},
		"idleness": {nil, nil, "ended", longest, func(err error) bool {
			p, ok := errors.AsType[*sallyport.Problem](err)
			return ok && errors.Is(p, sallyport.ErrDenied)
		}},
		// An answer that does not end kept a session alive without input.
		"idleness within an answer": {nil, func(_, server net.Conn, _ context.CancelCauseFunc) { go speak(server, longest*2/5) }, "..ended", longest, func(err error) bool { return errors.Is(err, sallyport.ErrDenied) }},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				client, clientFar := net.Pipe()
				server, serverFar := net.Pipe()
				defer time.Sleep(longest) // for who speaks to notice
				defer client.Close()
				defer server.Close()
				e := &echoes{bad: tt.bad}
				e.Relay = Relay{Client: clientFar, Server: serverFar, Farewell: farewell, Linger: linger, Longest: longest, Stopping: func() { e.stopped++ }}
				ctx, cancel := context.WithCancelCause(t.Context())
				defer cancel(nil)
				done := make(chan error, 1)
				go func() { done <- e.Run(ctx, e) }()
				heard := make(chan string, 1)
				go func() {
					b, _ := io.ReadAll(client)
					heard <- string(b)
				}()
				if tt.bad == nil {
					io.WriteString(client, "up")
					b := make([]byte, 2)
					if _, err := io.ReadFull(server, b); err != nil || string(b) != "up" {
						t.Fatalf("%q, %v", b, err)
					}
					synctest.Wait()
				}
				began := time.Now()
				if tt.end != nil {
					tt.end(client, server, cancel)
				}
				if err := <-done; !tt.is(err) {
					t.Errorf("ends by %v", err)
				}
				if d := time.Since(began); d != tt.after {
					t.Errorf("over after %s, want %s", d, tt.after)
				}
				if got := <-heard; got != tt.word {
					t.Errorf("the client hears %q, want %q", got, tt.word)
				}
				if e.stopped == 0 {
					t.Error("what PassUp waits for was not let go")
				}
			})
		})
	}
}
