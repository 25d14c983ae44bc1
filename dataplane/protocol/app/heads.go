package app

import (
	"errors"
	"io"
	"net/http"
)

// maxAnswerHead is what the head of an answer in HTTP/2 may count, and its trailers. Who
// gets more than he takes, which for gateways is 64 KiB, may end the connection at the
// next CONTINUATION frame (net/http does), and with it what else runs on it. The
// server adds a few fields of its own.
const maxAnswerHead = maxHead - 1<<10

// errAnswerHead: an application has said more in a head than goes through.
var errAnswerHead = errors.New("the head of the answer is too large")

// headSize is what fields count in HTTP/2 (RFC 9113, section 6.5.2): 32 bytes for each
// are more than many a field has itself.
func headSize(h http.Header) (n int) {
	const field = 32
	for name, values := range h {
		for _, v := range values {
			n += field + len(name) + len(v)
		}
	}
	return n
}

// announced is what the names of trailers take in the head.
func announced(trailer http.Header) (n int) {
	for name := range trailer {
		n += len(name) + len(", ")
	}
	return n
}

// framed says that answers go by HTTP/2, on a connection with others.
func (v *visit) framed() bool { return v.candidate.ALPN == "h2" }

// fits refuses an answer whose head is too large, and has it break off where its
// trailers are: they come when the rest has gone.
func (v *visit) fits(r *http.Response) error {
	if !v.framed() {
		return nil
	}
	if headSize(r.Header)+announced(r.Trailer) > maxAnswerHead {
		return errAnswerHead
	}
	r.Body = &trailed{r.Body, r}
	return nil
}

// trailed is the body of an answer, whose trailers are known at its end.
type trailed struct {
	io.ReadCloser
	answer *http.Response
}

func (t *trailed) Read(p []byte) (int, error) {
	n, err := t.ReadCloser.Read(p)
	if err == io.EOF && headSize(t.answer.Trailer) > maxAnswerHead {
		err = errAnswerHead
	}
	return n, err
}
