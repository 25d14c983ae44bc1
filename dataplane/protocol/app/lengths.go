package app

import (
	"net/http"
	"sync/atomic"
)

// lengths finds out whether a request of HTTP/1.1 may have told its length beside
// chunks: net/http takes the chunks and forgets the length. After such a request the
// connection ends (RFC 9112, section 6.3), for who told both may mean the rest for
// another request.
//
// Invariant: of the names seen in what has been read, those that no request has had are
// of a request that told both, or stand in no head, or in one to come. So nothing is
// overlooked, and too much costs a connection.
type lengths struct {
	seen, had atomic.Int64
	matched   int // of the name, at the end of what has been read; the reader's own
}

// headRead is the most that the server reads at once where there may be a head: larger
// reads are of a body alone.
const headRead = 4 << 10

// read looks at what was read.
func (l *lengths) read(p []byte) {
	const name = "content-length"
	for _, c := range p {
		switch c |= 0x20; { // lower case, and more for a hyphen than there are
		case c == name[l.matched]:
			if l.matched++; l.matched == len(name) {
				l.seen.Add(1)
				l.matched = 0
			}
		case c == name[0]: // which is in it once
			l.matched = 1
		default:
			l.matched = 0
		}
	}
}

// both says that a request may have told both.
func (l *lengths) both(r *http.Request) bool {
	if len(r.Header["Content-Length"]) > 0 {
		l.had.Add(1)
	}
	return len(r.TransferEncoding) > 0 && l.seen.Load() > l.had.Load()
}
