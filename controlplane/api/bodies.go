package api

import (
	"context"
	"io"
	"net/http"
	"sync"

	"connectrpc.com/connect"
	"golang.org/x/sync/semaphore"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/wire/sallyport/v1/sallyportv1connect"
)

// Bytes of requests that may be under way at a time. A stalled request has its
// bytes for bodyTimeout, and one user or host has maxPerCaller connections of
// 100 streams: without these, 1.6 GB of the smallest.
const (
	bytesPerUser = 8 << 20  // 8 documents; 128 of the smallest bound
	bytesPerHost = 16 << 20 // two announcements as large as may be

	// All users together leave the hosts' alone, and all hosts what ships events:
	// that has hostsAtOnce for each host already.
	bytesOfUsers  = 64 << 20
	bytesOfHosts  = 256 << 20
	bytesOfEvents = 128 << 20
)

// bodies bound the bytes of requests by their callers' certificates. Strangers'
// are bounded by their connections (maxStrangers, joinStreams), and the admin
// socket, by which an attacker is locked, waits for nobody.
type bodies struct {
	perCaller             turns
	users, hosts, shipped *semaphore.Weighted
}

func newBodies() *bodies {
	return &bodies{users: semaphore.NewWeighted(bytesOfUsers), hosts: semaphore.NewWeighted(bytesOfHosts), shipped: semaphore.NewWeighted(bytesOfEvents)}
}

// weighed lets requests in whose bytes there is room for; the others wait unread
// until there is, and are refused after unaryTimeout.
func (b *bodies) weighed(next http.Handler) http.Handler {
	refuse := connect.NewErrorWriter()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n := weight(r)
		if n == 0 {
			next.ServeHTTP(w, r)
			return
		}
		ctx, cancel := context.WithTimeout(r.Context(), unaryTimeout)
		leave, err := b.take(ctx, r.URL.Path, n)
		cancel()
		if err != nil {
			_ = refuse.Write(w, r, refusal(err)) // who is gone needs no word
			return
		}
		defer leave()
		if boundOf(r.URL.Path).stream {
			r = r.WithContext(r.Context())
			r.Body = &readOut{r.Body, leave}
		}
		next.ServeHTTP(w, r)
	})
}

// weight is the bytes that a request has, or may have where it does not say.
func weight(r *http.Request) int64 {
	most := int64(boundOf(r.URL.Path).bytes)
	for _, coding := range []string{"Content-Encoding", "Connect-Content-Encoding", "Grpc-Encoding"} {
		if c := r.Header.Get(coding); c != "" && c != "identity" {
			return most // the length is that before decompression
		}
	}
	if r.ContentLength < 0 {
		return most
	}
	return min(r.ContentLength, most) // more is not read
}

// take waits for room, until ctx is done. leave gives it back; only its first
// call does.
func (b *bodies) take(ctx context.Context, procedure string, n int64) (leave func(), err error) {
	name, most, all := b.of(callerOf(ctx), procedure)
	if all == nil {
		return func() {}, nil
	}
	own := func() {}
	if most > 0 {
		if own, err = b.perCaller.take(ctx, turn{caller: name}, most, n); err != nil {
			return nil, tooMuch("you have too many bytes of requests under way", "wait for the answer to one before the next")
		}
	}
	if all.Acquire(ctx, n) != nil {
		own()
		return nil, tooMuch("auth has too many bytes of requests under way", "try again")
	}
	return sync.OnceFunc(func() {
		all.Release(n)
		own()
	}), nil
}

// of says what a caller's requests are counted with: his own, of most bytes (0:
// they are bounded already), and all of his sort; nil: neither.
func (b *bodies) of(c Caller, procedure string) (name string, most int64, all *semaphore.Weighted) {
	if c.Web {
		c = Caller{Identity: c.Via} // the gateway bounds its visitors
	}
	switch c.Identity.Kind {
	case sallyport.KindUser:
		return c.name(), bytesPerUser, b.users
	case sallyport.KindAgent, sallyport.KindGateway:
		if procedure == sallyportv1connect.HostServiceAppendEventsProcedure {
			return c.name(), 0, b.shipped
		}
		return c.name(), bytesPerHost, b.hosts
	}
	return "", 0, nil
}

func tooMuch(fact, hint string) error {
	return &sallyport.Problem{Kind: sallyport.ErrExhausted, Fact: fact, Hint: hint}
}

// readOut gives the room of a stream's request back when it has been read: the
// stream itself goes on for days.
type readOut struct {
	io.ReadCloser
	leave func()
}

func (b *readOut) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err != nil {
		b.leave()
	}
	return n, err
}
