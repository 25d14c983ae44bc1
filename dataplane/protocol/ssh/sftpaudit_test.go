package ssh

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
	"testing"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/dataplane/session"
)

// sftpPacket is one packet with an id.
func sftpPacket(kind byte, id uint32, body ...[]byte) []byte {
	payload := join(append([][]byte{{kind}, binary.BigEndian.AppendUint32(nil, id)}, body...)...)
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(payload))), payload...)
}

func number(n uint32) []byte { return binary.BigEndian.AppendUint32(nil, n) }

// testLog is a log whose events are collected.
func testLog() (*fileLog, *[]string) {
	lines := new([]string)
	s := &session.Session{Emit: func(e sallyport.Event) {
		*lines = append(*lines, fmt.Sprint(e.Code, " ", e.Fields["path"], " ", e.Fields["target_path"], " ", e.Fields["error"], " ",
			e.Fields["bytes_read"], " ", e.Fields["bytes_written"]))
	}}
	return newFileLog(&channel{conn: &connection{session: s, server: &Server{}, account: account{name: "tester", home: "/home/tester"}}}), lines
}

func TestFileLog(t *testing.T) {
	l, lines := testLog()
	steps := []struct {
		request, response []byte
	}{
		{append(number(5), 1, 0, 0, 0, 3), append(number(5), 2, 0, 0, 0, 3)}, // INIT, VERSION
		{sftpPacket(fxpOpen, 1, str("/etc/passwd"), number(1), number(0)), sftpPacket(fxpHandle, 1, str("h"))},
		{sftpPacket(fxpRead, 2, str("h"), make([]byte, 8), number(100)), sftpPacket(fxpData, 2, number(9), []byte("ninebytes"))},
		{sftpPacket(fxpRead, 3, str("h"), make([]byte, 8), number(100)), sftpPacket(fxpStatus, 3, number(1), str("eof"), str(""))},
		{sftpPacket(fxpWrite, 4, str("h"), make([]byte, 8), str("four")), sftpPacket(fxpStatus, 4, number(0), str(""), str(""))},
		{sftpPacket(fxpClose, 5, str("h")), sftpPacket(fxpStatus, 5, number(0), str(""), str(""))},
		{sftpPacket(fxpRemove, 6, str("a\nb")), sftpPacket(fxpStatus, 6, number(3), str("denied"), str(""))},
		{sftpPacket(fxpExtended, 7, str("posix-rename@openssh.com", "a", "b")), sftpPacket(fxpStatus, 7, number(0), str(""), str(""))},
		{sftpPacket(fxpExtended, 8, str("statvfs@openssh.com", "a")), sftpPacket(fxpStatus, 8, number(0), str(""), str(""))},
		{sftpPacket(fxpSymlink, 9, str("target", "link")), sftpPacket(fxpStatus, 9, number(0), str(""), str(""))},
	}
	for i, s := range steps {
		if err := l.request(s.request); err != nil {
			t.Fatalf("request %d: %v", i, err)
		}
		if err := l.response(s.response); err != nil {
			t.Fatalf("response %d: %v", i, err)
		}
	}
	want := []string{
		"TS001I /etc/passwd <nil> <nil> <nil> <nil>", "TS002I /etc/passwd <nil> <nil> 9 4", "TS011E a?b <nil> permission denied <nil> <nil>",
		"TS016I a b <nil> <nil> <nil>", "TS018I link target <nil> <nil> <nil>",
	}
	if !slices.Equal(*lines, want) {
		t.Errorf("got  %q\nwant %q", *lines, want)
	}
}

// TestFileLogRefuses: what it cannot follow does not reach the server.
func TestFileLogRefuses(t *testing.T) {
	for name, b := range map[string][]byte{
		"empty packet": number(0), "large packet": number(maxRequest + 1), "no id": append(number(2), fxpRemove, 0),
		"short path": append(number(13), append([]byte{fxpRemove, 0, 0, 0, 1}, append(number(5), "abcd"...)...)...),
		"id in use":  append(sftpPacket(fxpRemove, 1, str("a")), sftpPacket(17, 1, str("b"))...),
	} {
		l, _ := testLog()
		if err := l.request(b); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
	// A handle is a number that can be guessed before it is given.
	guessed := str("\x00\x00\x00\x00")
	for name, b := range map[string][]byte{
		"read": sftpPacket(fxpRead, 2, guessed, make([]byte, 8), number(100)), "write": sftpPacket(fxpWrite, 2, guessed, make([]byte, 8), str("secret")),
		"attributes": sftpPacket(fxpFsetstat, 2, guessed, number(4), number(0o777)), "close": sftpPacket(fxpClose, 2, guessed),
	} {
		l, _ := testLog()
		if err := l.request(append(sftpPacket(fxpOpen, 1, str("a"), number(2), number(0)), b...)); err != errHandle {
			t.Errorf("%s ahead of the answer to the open: %v", name, err)
		}
	}
}

// TestCopiesAreNotOffered: copy-data moves bytes that no line would have. It is not
// offered, however the offer comes, and a client that asks for it is cut off.
func TestCopiesAreNotOffered(t *testing.T) {
	version := func(extensions ...string) []byte {
		payload := join([]byte{fxpVersion}, number(3), str(extensions...))
		return append(number(uint32(len(payload))), payload...)
	}
	status := sftpPacket(fxpStatus, 1, number(0), str("", ""))
	for _, c := range []struct{ in, out []byte }{
		{version("posix-rename@openssh.com", "1", "copy-data", "1", "copy-file", "1", "limits@openssh.com", "1"), version("posix-rename@openssh.com", "1", "limits@openssh.com", "1")},
		{version("copy-data", "1"), version()},
		{version(), version()},
		{sftpPacket(fxpHandle, 7, str("copy-data")), sftpPacket(fxpHandle, 7, str("copy-data"))}, // odd, and nothing of ours
	} {
		in, want := append(slices.Clone(c.in), status...), append(slices.Clone(c.out), status...)
		for size := range len(in) {
			l, _ := testLog()
			var got []byte
			if err := feed(func(b []byte) error {
				out, err := l.pass(slices.Clone(b))
				got = append(got, out...)
				return err
			}, in, size+1); err != nil || !bytes.Equal(got, want) {
				t.Fatalf("in pieces of %d: %q, %v, want %q", size+1, got, err, want)
			}
		}
	}
	for name, b := range map[string][]byte{
		"malformed": version("copy-data"), "empty": number(0), "long": number(maxKept + 1), "no sftp": []byte("Welcome!"),
	} {
		l, _ := testLog()
		if out, err := l.pass(b); err != errPacket || len(out) > 0 {
			t.Errorf("%s: %q, %v", name, out, err)
		}
	}
	l, _ := withOpen(t)
	if err := l.request(sftpPacket(fxpExtended, 2, str("copy-data", "h"), make([]byte, 16), str("h"), make([]byte, 8))); err != errCopies {
		t.Errorf("asked for: %v", err)
	}
}

// TestFileLogTrailing: reads behind a close are of nobody, and harm nobody.
func TestFileLogTrailing(t *testing.T) {
	l, _ := withOpen(t)
	if err := l.request(append(sftpPacket(fxpClose, 2, str("h")), sftpPacket(fxpRead, 3, str("h"), make([]byte, 8), number(100))...)); err != nil {
		t.Fatal(err)
	}
	if err := l.response(append(sftpPacket(fxpStatus, 2, number(0)), sftpPacket(fxpStatus, 3, number(4))...)); err != nil || l.opening != 0 || l.read != 0 {
		t.Errorf("%v; %d opening, %d read", err, l.opening, l.read)
	}
}

// withOpen is a log of a session that has a file open, with handle h.
func withOpen(t testing.TB) (*fileLog, *[]string) {
	t.Helper()
	l, lines := testLog()
	if err := l.request(sftpPacket(fxpOpen, 1, str("/open"), number(3), number(0))); err != nil {
		t.Fatal(err)
	}
	if err := l.response(sftpPacket(fxpHandle, 1, str("h"))); err != nil {
		t.Fatal(err)
	}
	return l, lines
}

// FuzzFileLog: however a stream is cut, the log says the same, and it is what a
// reader of whole packets says; nothing is kept beyond the bounds.
func FuzzFileLog(f *testing.F) {
	f.Add(append(sftpPacket(fxpOpen, 1, str("/x"), number(1), number(0)), sftpPacket(fxpClose, 2, str("h"))...),
		append(sftpPacket(fxpHandle, 1, str("h")), sftpPacket(fxpStatus, 2, number(0))...), uint8(3))
	f.Add(sftpPacket(fxpRename, 7, str("a", "b")), sftpPacket(fxpStatus, 7, number(4)), uint8(1))
	f.Add(sftpPacket(fxpWrite, 7, str("h"), make([]byte, 8), str("data")), sftpPacket(fxpStatus, 7, number(0)), uint8(5))
	f.Add(sftpPacket(fxpExtended, 9, str("hardlink@openssh.com", "a", "b")), sftpPacket(fxpStatus, 9, number(0)), uint8(200))
	f.Fuzz(func(t *testing.T, requests, responses []byte, size uint8) {
		whole, wholeLines := withOpen(t)
		errA, errB := whole.request(requests), whole.response(responses)
		cut, cutLines := withOpen(t)
		errC, errD := feed(cut.request, requests, int(size)+1), feed(cut.response, responses, int(size)+1)
		if errA != errC || errB != errD || !slices.Equal(*wholeLines, *cutLines) {
			t.Fatalf("whole: %v %v %q; cut: %v %v %q", errA, errB, *wholeLines, errC, errD, *cutLines)
		}
		if n := removals(requests); errA == nil && n != pendingOf(whole, fileRemove)+answeredRemovals(*wholeLines) && errB == nil && n < maxPending {
			t.Fatalf("%d removals asked for, %q and %d pending", n, *wholeLines, pendingOf(whole, fileRemove))
		}
		if len(whole.pending) > maxPending || len(whole.handles) > maxHandles || cap(whole.requests.head) > 4*maxKept {
			t.Fatal("more is kept than may be")
		}
	})
}

func feed(to func([]byte) error, b []byte, size int) error {
	for len(b) > 0 {
		n := min(size, len(b))
		if err := to(b[:n]); err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}

// removals counts REMOVE packets that are whole, as filexfer-02 has them.
func removals(b []byte) (n int) {
	r := bytes.NewReader(b)
	for {
		var size uint32
		if binary.Read(r, binary.BigEndian, &size) != nil || size == 0 || int64(size) > int64(r.Len()) {
			return n
		}
		packet := make([]byte, size)
		_, _ = r.Read(packet)
		if packet[0] == fxpRemove {
			n++
		}
	}
}

func pendingOf(l *fileLog, a fileAction) (n int) {
	for _, op := range l.pending {
		if op.action == a {
			n++
		}
	}
	return n
}

func answeredRemovals(lines []string) (n int) {
	for _, line := range lines {
		if len(line) > 5 && line[:5] == "TS011" {
			n++
		}
	}
	return n
}

func TestParseSCP(t *testing.T) {
	for _, c := range []struct {
		command string
		use     scpUse
		ok      bool
	}{
		{"scp -t /tmp/x", scpUse{upload: true, path: "/tmp/x"}, true},
		{"scp -f -- a b", scpUse{path: "a b"}, true},
		{"scp -r -p -d -t .", scpUse{upload: true, path: "."}, true},
		{"/usr/bin/scp -v -rf x", scpUse{path: "x"}, true},
		{"scp", scpUse{}, false}, {"scp a b", scpUse{path: "a b"}, false}, {"", scpUse{}, false}, {"scpx -t a", scpUse{}, false},
	} {
		if use, ok := parseSCP(c.command); ok != c.ok || ok && use != c.use {
			t.Errorf("%q: %+v, %v", c.command, use, ok)
		}
	}
}
