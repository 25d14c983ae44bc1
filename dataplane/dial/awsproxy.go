package dial

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strings"
	"time"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/dataplane/sigv4"
)

// maxAWSBody bounds a body that is kept to be hashed: one of a client that does
// not say its hash. Those of S3 do, and are not kept.
const maxAWSBody = 70 << 20

// Bodies to be hashed are held until they are answered. Small ones are bounded by the
// number of connections; of larger ones only so many are held at a time, and others
// wait. One of unknown size counts as small until it is not.
const (
	smallAWSBody   = 1 << 20
	largeAWSBodies = 8
)

// awsAnswerTime is how long AWS may think: a function that is called runs 15 minutes
// at most.
const awsAnswerTime = 16 * time.Minute

// AWSProxy gives AWS's clients a port on the loopback. Whoever else reaches the
// port gets nothing: each request is signed with keys of this run, which only the
// programs that it starts are told. The agent signs anew.
type AWSProxy struct {
	// Listener accepts local programs. Serve closes it.
	Listener net.Listener

	// Dial connects to the application by http/1.1.
	Dial func(ctx context.Context) (net.Conn, error)

	Host string     // the application's name, which its agent answers to
	Role string     // the ARN of the role to be used
	Keys sigv4.Keys // those of NewAWSKeys

	Log *slog.Logger // nil: none

	large chan struct{} // one for each large body that is held
}

// NewAWSKeys makes keys that are worth nothing but to one AWSProxy.
func NewAWSKeys() sigv4.Keys {
	return sigv4.Keys{AccessKey: "SALLY" + rand.Text()[:15], Secret: rand.Text() + rand.Text()[:14]}
}

// Serve carries requests until ctx is done, and returns nil then.
func (p *AWSProxy) Serve(ctx context.Context) error {
	if p.Log == nil {
		p.Log = slog.New(slog.DiscardHandler)
	}
	p.large = make(chan struct{}, largeAWSBodies)
	transport := &http.Transport{
		DialTLSContext:      func(ctx context.Context, _, _ string) (net.Conn, error) { return p.Dial(ctx) },
		MaxIdleConnsPerHost: appSpares, MaxConnsPerHost: DefaultMaxConnections, IdleConnTimeout: appIdle, ResponseHeaderTimeout: awsAnswerTime,
		DisableCompression: true, MaxResponseHeaderBytes: appHead, ExpectContinueTimeout: time.Second,
	}
	defer transport.CloseIdleConnections()
	quiet := slog.NewLogLogger(p.Log.Handler(), slog.LevelDebug)
	proxy := &httputil.ReverseProxy{Rewrite: p.rewrite, Transport: transport, ErrorHandler: p.broken, FlushInterval: -1, ErrorLog: quiet}
	srv := &http.Server{
		Handler: p.guard(proxy), ReadHeaderTimeout: appHeadTime, IdleTimeout: appIdle,
		MaxHeaderBytes: appHead, ErrorLog: quiet, BaseContext: func(net.Listener) context.Context { return ctx },
	}
	stop := context.AfterFunc(ctx, func() { srv.Close() })
	defer stop()
	if err := srv.Serve(bound(p.Listener, DefaultMaxConnections)); ctx.Err() == nil && !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// guard lets pass what is signed with this run's keys.
func (p *AWSProxy) guard(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var slot awsSlot
		defer slot.free()
		a, err := p.check(w, r, &slot)
		if err != nil {
			sigv4.Tell(w, r, sigv4.Fault{Status: http.StatusForbidden, Code: sigv4.AccessDenied, Service: a.Service,
				Message: "sally: " + err.Error() + "; use the environment that sally aws sets, and no profile of your own"})
			return
		}
		next.ServeHTTP(w, r)
	})
}

// check verifies a request; afterwards it says what its body is.
func (p *AWSProxy) check(w http.ResponseWriter, r *http.Request, slot *awsSlot) (sigv4.Authorization, error) {
	query, err := url.ParseQuery(r.URL.RawQuery)
	switch {
	case r.Method == http.MethodConnect:
		return sigv4.Authorization{}, errors.New("this is no proxy of that kind")
	case sigv4.HopByHop(r.Header):
		return sigv4.Authorization{}, errors.New("the request has headers for this port alone")
	case err != nil, !strings.HasPrefix(r.URL.Path, "/"):
		return sigv4.Authorization{}, errors.New("the request can be read in two ways")
	case sigv4.Presigned(query):
		return sigv4.Authorization{}, errors.New("a signature in a link cannot be passed on")
	}
	a, err := p.Keys.Verify(r, time.Now(), func() (string, error) {
		hash, err := hashed(w, r, func() error { return slot.take(r, p.large) })
		r.Header.Set(sigv4.PayloadHeader, hash)
		return hash, err
	})
	if err != nil {
		return a, err
	}
	return a, sigv4.Payload(r.Header.Get(sigv4.PayloadHeader))
}

// awsSlot is the room for one request's body, if it needs any.
type awsSlot struct{ of chan struct{} }

// take waits for room.
func (s *awsSlot) take(r *http.Request, of chan struct{}) error {
	select {
	case of <- struct{}{}:
		s.of = of
		return nil
	case <-r.Context().Done():
		return errors.New("the request broke off")
	}
}

func (s *awsSlot) free() {
	if s.of != nil {
		<-s.of
	}
}

// hashed reads a body, and puts it back. A large one waits for its room.
func hashed(w http.ResponseWriter, r *http.Request, room func() error) (string, error) {
	body := http.MaxBytesReader(w, r.Body, maxAWSBody)
	var b []byte
	var err error
	if r.ContentLength <= smallAWSBody {
		b, err = io.ReadAll(io.LimitReader(body, smallAWSBody+1))
	}
	if err == nil && (r.ContentLength > smallAWSBody || len(b) > smallAWSBody) {
		if err := room(); err != nil {
			return "", err
		}
		b, err = io.ReadAll(io.MultiReader(bytes.NewReader(b), body))
	}
	var large *http.MaxBytesError
	if errors.As(err, &large) {
		return "", errors.New("the request is too large")
	}
	if err != nil {
		return "", errors.New("the request broke off")
	}
	r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(b)), int64(len(b))
	r.TransferEncoding = nil // its length is known now
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:]), nil
}

// awsRoleHeader is read by the agent (package aws's RoleHeader).
const awsRoleHeader = "Sallyport-Aws-Role"

func (p *AWSProxy) rewrite(r *httputil.ProxyRequest) {
	r.Out.URL.Scheme, r.Out.URL.Host, r.Out.Host = "https", p.Host, p.Host
	r.Out.Header.Set(awsRoleHeader, p.Role)
	if _, ok := r.Out.Header["User-Agent"]; !ok {
		r.Out.Header["User-Agent"] = nil
	}
}

// broken tells why the application is out of reach, such that clients do not ask
// again and again when it is for good.
func (p *AWSProxy) broken(w http.ResponseWriter, r *http.Request, err error) {
	if r.Context().Err() != nil {
		panic(http.ErrAbortHandler)
	}
	p.Log.Warn("application cannot be reached", "error", err)
	a, _ := sigv4.Parse(r.Header.Get("Authorization")) // checked before
	f := sigv4.Fault{Status: http.StatusBadGateway, Code: sigv4.Unavailable, Message: "the application cannot be reached", Service: a.Service}
	var problem *sallyport.Problem
	if errors.As(err, &problem) {
		f.Status, f.Code, f.Message = http.StatusForbidden, sigv4.AccessDenied, strings.TrimSpace(problem.Fact+" "+problem.Hint)
	}
	sigv4.Tell(w, r, f)
}
