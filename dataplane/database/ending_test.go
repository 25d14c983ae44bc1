package database

import (
	"errors"
	"io"
	"net"
	"testing"
	"testing/synctest"
	"time"
)

// TestLost: the log says who has gone, and how.
func TestLost(t *testing.T) {
	reset := errors.New("reset")
	for _, tt := range []struct {
		lost    *Lost
		text    string
		server  bool
		inOrder bool
		cause   error
	}{
		{LostClient(io.EOF), "the client: EOF", false, true, io.EOF},
		{LostClient(reset), "the client: reset", false, false, reset},
		{LostServer(io.EOF), "the database: EOF", true, true, io.EOF},
		{LostServer(reset), "the database: reset", true, false, reset},
	} {
		if l := tt.lost; l.Error() != tt.text || l.ByServer() != tt.server || l.InOrder() != tt.inOrder || !errors.Is(l, tt.cause) {
			t.Errorf("%v, %v, %v, want %+v", l, l.ByServer(), l.InOrder(), tt)
		}
	}
}

// TestDismiss: who is sent away hears why, and has a bounded time to go.
func TestDismiss(t *testing.T) {
	const farewell = time.Second
	synctest.Test(t, func(t *testing.T) {
		for _, goes := range []bool{true, false} {
			near, far := net.Pipe()
			began, done := time.Now(), make(chan struct{})
			go func() {
				defer close(done)
				Dismiss(far, []byte("why"), farewell)
			}()
			b := make([]byte, 3)
			if _, err := io.ReadFull(near, b); err != nil || string(b) != "why" {
				t.Fatalf("%q, %v", b, err)
			}
			if _, err := io.WriteString(near, "what it still says"); err != nil {
				t.Error(err)
			}
			want := farewell
			if goes {
				near.Close()
				want = 0
			}
			<-done
			if d := time.Since(began); d != want {
				t.Errorf("goes %v: over after %s", goes, d)
			}
			near.Close()
			far.Close()
		}
	})
}

// TestTraffic: what moves counts, and what the client says ends idleness.
func TestTraffic(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var m Traffic
		m.Begin()
		for range 3 {
			time.Sleep(time.Hour)
			m.Received(2)
			time.Sleep(time.Minute)
			m.Sent(5)
			if d := m.IdleFor(); d != time.Minute {
				t.Errorf("idle for %s", d)
			}
		}
		if in, out := m.Totals(); in != 6 || out != 15 {
			t.Errorf("%d bytes received, %d sent", in, out)
		}
	})
}
