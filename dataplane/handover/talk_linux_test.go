package handover

import (
	"bytes"
	"errors"
	"io"
	"os"
	"testing"
)

// TestTalk: single records go both ways with their descriptors, and what was said
// before the end is heard.
func TestTalk(t *testing.T) {
	mine, its, err := Pair()
	if err != nil {
		t.Fatal(err)
	}
	a := NewTalk(mine)
	defer a.Close()
	f := its.File() // as it goes to another process
	fd := int(f.Fd())
	own, err := own(fd)
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	b, err := OpenTalk(own)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if err := a.Send(t.Context(), Record{Part: "p", Kind: 7, Body: []byte("body"), FDs: []int{int(w.Fd())}}); err != nil {
		t.Fatal(err)
	}
	w.Close()
	got, err := b.Receive()
	if err != nil || got.Part != "p" || got.Kind != 7 || !bytes.Equal(got.Body, []byte("body")) || len(got.FDs) != 1 {
		t.Fatalf("%+v, %v", got, err)
	}
	closeAll(got.FDs)
	if _, err := r.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("the descriptor is still open: %v", err)
	}
	if sent, err := b.TrySend(Record{Part: "p", Kind: 8}); !sent || err != nil {
		t.Fatal(sent, err)
	}
	a.Finish()
	if _, err := b.Receive(); !errors.Is(err, io.EOF) {
		t.Errorf("after the end: %v", err)
	}
	if got, err := a.Receive(); err != nil || got.Kind != 8 {
		t.Errorf("what was said against the end: %+v, %v", got, err)
	}
	for {
		sent, err := b.TrySend(Record{Part: "p", Kind: 9, Body: make([]byte, MaxBody)})
		if err != nil {
			t.Fatal(err)
		}
		if !sent {
			break // no room: it does not wait
		}
	}
}

// TestTalkStranger: only a socket of packets is one.
func TestTalkStranger(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	if _, err := OpenTalk(int(r.Fd())); err == nil {
		t.Error("a pipe was taken")
	}
	if sent, err := (&Talk{}).TrySend(Record{}); sent || err == nil {
		t.Error("a record without a part was sent")
	}
}

// TestTalkKeeps: who has received a record has it for as long as he likes, whatever
// comes after it.
func TestTalkKeeps(t *testing.T) {
	mine, its := pair(t)
	a, b := NewTalk(mine), NewTalk(its)
	for kind, body := range []string{"first", "other"} {
		if sent, err := a.TrySend(Record{Part: "p", Kind: uint32(kind), Body: []byte(body), FDs: make([]int, 1+kind)}); !sent || err != nil {
			t.Fatal(sent, err)
		}
	}
	first, err := b.Receive()
	if err != nil || len(first.FDs) != 1 {
		t.Fatal(first, err)
	}
	fd := first.FDs[0]
	second, err := b.Receive()
	if err != nil || len(second.FDs) != 2 {
		t.Fatal(second, err)
	}
	if string(first.Body) != "first" || first.FDs[0] != fd || second.FDs[0] == fd {
		t.Errorf("the first record is %q with %v now", first.Body, first.FDs)
	}
	closeAll(append(first.FDs, second.FDs...))
}
