package kube

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log"
	"mime"
	"net/http"
	"net/http/httputil"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/dataplane/halfclose"
)

const (
	copyBuffer = 32 << 10 // of one direction
	maxNamed   = 3 << 20  // bytes of an object that must be read for its name: what API servers take
)

// masters is the group that API servers let do everything.
const masters = "system:masters"

// call is one request under way.
type call struct {
	live     *live
	client   http.ResponseWriter
	method   string
	path     string
	query    string   // as it came
	request  *request // nil: it could not be read
	stream   string   // exec, attach, portforward; ""
	upgrade  string   // the protocol that the client asks for
	as       principal
	keep     keepFunc
	object   *holding // read for its name; nil for nearly all
	named    string   // the name that was read
	recorded bool
}

// principal is who the API server is told that the request is from.
type principal struct {
	user   string
	groups []string
}

type callKey struct{}

// ServeHTTP takes one request to its answer.
func (l *live) ServeHTTP(w http.ResponseWriter, hr *http.Request) {
	if !l.http.Begin() {
		panic(http.ErrAbortHandler)
	}
	defer l.http.End()
	c := &call{live: l, client: w, method: hr.Method, path: hr.URL.Path, query: hr.URL.RawQuery}
	defer func() { c.object.drop() }()
	if p := c.check(hr); p != nil {
		c.refuse(w, p)
		return
	}
	if hr.Body != nil && hr.Body != http.NoBody && c.upgrade == "" {
		hr.Body = l.body(w, hr.Body)
	}
	if p := c.authorize(hr); p != nil {
		c.refuse(w, p)
		return
	}
	w = final{w}
	hr = hr.WithContext(context.WithValue(hr.Context(), callKey{}, c))
	if c.stream != "" && c.upgrade != "" {
		c.serveStream(w, hr)
		return
	}
	l.server.proxy.ServeHTTP(w, hr)
}

// final passes no interim answers on: a hostile API server's 101 would make the
// client take what follows for another protocol.
type final struct{ http.ResponseWriter }

// WriteHeader adds no type to an answer that says none: net/http would guess one, and
// what a pod or a service sends by the proxy subresource is anybody's.
func (f final) WriteHeader(code int) {
	if code >= http.StatusOK {
		if h := f.Header(); h["Content-Type"] == nil {
			h["Content-Type"] = nil
		}
		f.ResponseWriter.WriteHeader(code)
	}
}

// Unwrap lets http.ResponseController find what else the writer can.
func (f final) Unwrap() http.ResponseWriter { return f.ResponseWriter }

// refuse answers in the API's own error, and writes it down.
func (c *call) refuse(w http.ResponseWriter, p *sallyport.Problem) {
	code := codeOf(p)
	c.record(code, p.Fact)
	if c.live.sess == nil {
		w.Header().Set("Connection", "close")
	}
	if errors.Is(p, errHeld) {
		w.Header().Set("Retry-After", "1") // clients of the API wait then, and ask again
	}
	fail(w, code, message(p), c.request)
}

// check reads the request and refuses what no role can allow.
func (c *call) check(hr *http.Request) *sallyport.Problem {
	if p := c.live.refusal; p != nil {
		return p
	}
	r, why := parse(hr.Method, hr.URL)
	if r != nil {
		c.request, c.stream = r, r.stream()
	}
	if why != "" {
		return invalid(why)
	}
	c.upgrade = upgrade(hr.Header)
	if c.upgrade == "" && hr.Header.Get("Upgrade") != "" {
		hr.Header.Del("Upgrade")
	}
	if c.upgrade != "" && c.stream == "" && r.subresource != "proxy" {
		return invalid("only exec, attach, port-forward and proxy can switch to another protocol")
	}
	return nil
}

func invalid(fact string) *sallyport.Problem {
	return &sallyport.Problem{Kind: sallyport.ErrInvalid, Fact: fact}
}

// authorize asks the roles, and finds out as whom the request goes on.
func (c *call) authorize(hr *http.Request) *sallyport.Problem {
	grant, p := c.live.sess.Kube()
	if p != nil {
		return p
	}
	var answers []sallyport.KubeAnswer
	for _, q := range c.request.questions() {
		a := grant.Ask(q)
		// Of a role that allows all names and gives nobody, the answer is no better than none.
		nobody := !a.Allowed || len(a.Users) == 0 && len(a.Groups) == 0
		if nobody && q.Verb == "create" && q.Name == "" && !q.Whole && c.upgrade == "" {
			name, p := c.readName(hr)
			if p != nil {
				return p
			}
			if name != "" {
				c.named, q.Name = name, name
				a = grant.Ask(q)
			}
		}
		if !a.Allowed {
			return sallyport.Denied("Kubernetes cluster "+c.live.candidate.Resource.Name+": "+a.Reason, "")
		}
		answers = append(answers, a)
	}
	if p := c.become(answers); p != nil {
		return p
	}
	return c.limit(answers[0].Keep)
}

// become chooses the user and the groups: those that every answer gives.
func (c *call) become(answers []sallyport.KubeAnswer) *sallyport.Problem {
	users, groups := answers[0].Users, answers[0].Groups
	for _, a := range answers[1:] {
		users, groups = both(users, a.Users), both(groups, a.Groups)
	}
	groups = slices.DeleteFunc(slices.Clone(groups), func(g string) bool { return g == masters })
	own := c.live.candidate.Identity.Name
	switch {
	case len(users) == 0 && len(groups) == 0:
		return sallyport.Denied("your roles give you no user and no group of Kubernetes cluster "+c.live.candidate.Resource.Name,
			"ask your administrator for kubernetes_groups or kubernetes_users; "+masters+" is never given")
	case len(users) == 0 || slices.Contains(users, own):
		c.as.user = own
	case len(users) == 1:
		c.as.user = users[0]
	default:
		return sallyport.Denied("your roles give you several Kubernetes users: "+strings.Join(users[:min(len(users), 8)], ", "),
			"ask your administrator for one of them")
	}
	c.as.groups = groups
	return nil
}

func both(a, b []string) []string {
	return slices.DeleteFunc(slices.Clone(a), func(v string) bool { return !slices.Contains(b, v) })
}

// errExpired says that a list that came in pages has to begin anew.
var errExpired = errors.New("the list cannot be continued")

// limit takes over what of a collection may be seen. Such a list comes whole: where a
// page ends, its continue token names the last object (EncodeContinue of
// k8s.io/apiserver, in clear), shown or not. Clients that ask for the rest of one that
// began before begin anew, as with a token that is too old.
func (c *call) limit(keep keepFunc) *sallyport.Problem {
	if keep == nil {
		return nil
	}
	if c.request.verb != "list" && c.request.verb != "watch" {
		return sallyport.Denied("your roles allow to "+c.request.verb+" some "+printable(c.request.resource)+" only, and this request concerns all of them",
			"name the objects")
	}
	if c.request.verb == "list" && slices.ContainsFunc(c.request.query["continue"], func(token string) bool { return token != "" }) {
		return &sallyport.Problem{Kind: sallyport.ErrInvalid, Cause: errExpired,
			Fact: "your roles allow to see some " + printable(c.request.resource) + " only, and such a list does not come in pages", Hint: "list without the continue parameter"}
	}
	c.request.query.Del("limit")
	c.request.query.Del("continue")
	c.keep = keep
	return nil
}

// readName finds the name of an object to be created, which roles may restrict.
func (c *call) readName(hr *http.Request) (string, *sallyport.Problem) {
	kind, _, err := mime.ParseMediaType(hr.Header.Get("Content-Type"))
	if hr.Body == nil || hr.Body == http.NoBody || err != nil || kind != "application/json" {
		return "", nil // denied for want of a name
	}
	c.object = &holding{held: &c.live.server.held, user: c.live.candidate.Identity.Name}
	switch err := c.object.read(hr.Body, maxNamed); {
	case errors.Is(err, errHeld):
		return "", &sallyport.Problem{Kind: sallyport.ErrExhausted, Fact: "too many objects are being sent whose names your roles restrict", Hint: "send fewer at a time", Cause: err}
	case err != nil:
		return "", invalid("the object cannot be read, or is too large")
	}
	body := c.object.body
	hr.Body, hr.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
	// Twice the same field would be read in one way here and in another there.
	meta, ok := onlyField(body, "metadata")
	if !ok {
		return "", nil
	}
	raw, ok := onlyField(meta, "name")
	var name string
	if !ok || json.Unmarshal(raw, &name) != nil {
		return "", nil
	}
	return name, nil
}

// onlyField is the value of a field that an object has exactly once, in any
// case of its letters.
func onlyField(object []byte, field string) (json.RawMessage, bool) {
	dec := json.NewDecoder(bytes.NewReader(object))
	if tok, err := dec.Token(); err != nil || tok != json.Delim('{') {
		return nil, false
	}
	var found json.RawMessage
	for dec.More() {
		tok, err := dec.Token()
		key, ok := tok.(string)
		if err != nil || !ok {
			return nil, false
		}
		var value json.RawMessage
		if dec.Decode(&value) != nil {
			return nil, false
		}
		if strings.EqualFold(key, field) {
			if found != nil || key != field {
				return nil, false
			}
			found = value
		}
	}
	if tok, err := dec.Token(); err != nil || tok != json.Delim('}') {
		return nil, false
	}
	return found, found != nil
}

// body bounds a request's body in size and time.
func (l *live) body(w http.ResponseWriter, body io.ReadCloser) io.ReadCloser {
	control := http.NewResponseController(w)
	_ = control.SetReadDeadline(time.Now().Add(l.bounds.Body)) // both versions of HTTP can
	return &timed{ReadCloser: http.MaxBytesReader(w, body, l.bounds.Size), lift: func() { _ = control.SetReadDeadline(time.Time{}) }}
}

// timed lifts the limit once the body is there: the answer may take its time.
type timed struct {
	io.ReadCloser
	lift func()
	once sync.Once
}

func (t *timed) Read(p []byte) (int, error) {
	n, err := t.ReadCloser.Read(p)
	if err == io.EOF {
		t.once.Do(t.lift)
	}
	return n, err
}

// newProxy passes requests on and answers back.
func (s *Server) newProxy() http.Handler {
	buffers := &buffers{}
	return halfclose.Proxy(&httputil.ReverseProxy{
		Rewrite: s.rewrite, Transport: s, ModifyResponse: s.answered, ErrorHandler: s.failed,
		BufferPool: buffers, ErrorLog: log.New(io.Discard, "", 0),
	})
}

// rewrite makes the request for the API server of what was read and allowed.
func (s *Server) rewrite(pr *httputil.ProxyRequest) {
	c := callOf(pr.Out.Context())
	out := pr.Out
	anonymous(out.Header)
	out.Trailer = nil // what is taken out of the head is not to be in them
	if c.keep != nil {
		narrow(out.Header, c.request)
	}
	out.URL = c.request.target(s.Target.base)
	if c.request.rest != "" {
		// A proxied program's own query is its own.
		out.URL.RawQuery = pr.In.URL.RawQuery
	}
	out.Host = s.Target.base.Host
	out.Header["Impersonate-User"] = []string{c.as.user}
	if len(c.as.groups) > 0 {
		out.Header["Impersonate-Group"] = slices.Clone(c.as.groups)
	}
	if _, has := out.Header["User-Agent"]; !has {
		out.Header["User-Agent"] = nil // and not Go's own
	}
}

// RoundTrip sends a request with the agent's own credentials.
func (s *Server) RoundTrip(out *http.Request) (*http.Response, error) {
	if b := s.Target.bearer; b != nil {
		token, err := b.get()
		if err != nil {
			return nil, err
		}
		out.Header.Set("Authorization", "Bearer "+token)
	}
	if callOf(out.Context()).upgrade != "" {
		return s.Target.streams.RoundTrip(out)
	}
	return s.Target.plain.RoundTrip(out)
}

// answered looks at an answer before the client gets it.
func (s *Server) answered(res *http.Response) error {
	c := callOf(res.Request.Context())
	switch {
	case res.StatusCode == http.StatusSwitchingProtocols && c.upgrade == "":
		return errors.New("the API server switched protocols unasked")
	case res.StatusCode == http.StatusSwitchingProtocols:
		c.live.conn.switched()
	case c.keep != nil && res.StatusCode == http.StatusOK:
		if res.Request.Method == http.MethodHead {
			res.Header.Del("Content-Length")
		} else if !filterable(res) {
			return errors.New("the API server answered in a form that cannot be filtered")
		} else {
			filter(res, c.request.verb == "watch", c.keep, holding{held: &c.live.server.shown, user: c.live.candidate.Identity.Name})
		}
	}
	if c.request != nil && c.request.verb == "watch" && res.StatusCode == http.StatusOK && filterable(res) {
		c.live.farewells.add(res, func() { c.live.http.Whole(c.client) })
	}
	res.Header.Del("Set-Cookie") // of a program behind a proxy subresource: it would be every cluster's
	c.record(res.StatusCode, "")
	return nil
}

// failed answers for an API server that did not.
func (s *Server) failed(w http.ResponseWriter, hr *http.Request, err error) {
	c := callOf(hr.Context())
	var large *http.MaxBytesError
	switch {
	case errors.As(err, &large):
		c.record(http.StatusRequestEntityTooLarge, "the request is too large")
		fail(w, http.StatusRequestEntityTooLarge, "the request is too large", c.request)
		return
	case hr.Context().Err() != nil:
		c.record(http.StatusBadGateway, "the client has gone, or its session has ended")
		panic(http.ErrAbortHandler)
	}
	s.log().Warn("API server does not answer", "resource", c.live.candidate.Resource.Name, "error", err)
	c.record(http.StatusBadGateway, "the API server does not answer")
	fail(w, http.StatusBadGateway, "Kubernetes cluster "+c.live.candidate.Resource.Name+": the API server does not answer the agent", c.request)
}

func callOf(ctx context.Context) *call {
	return ctx.Value(callKey{}).(*call) // set by ServeHTTP for every request
}

// serveStream serves exec, attach and port-forward: a session from before the
// API server hears of it until the last byte.
func (c *call) serveStream(w http.ResponseWriter, hr *http.Request) {
	l := c.live
	sess, err := l.candidate.Open(hr.Context(), c.use())
	if err != nil {
		var p *sallyport.Problem
		if !errors.As(err, &p) {
			p = &sallyport.Problem{Kind: sallyport.ErrUnavailable, Fact: "no session can start", Cause: err}
		}
		c.refuse(w, p)
		return
	}
	stop := context.AfterFunc(sess.Context, func() { l.conn.Close() })
	ctx, done := joined(hr.Context(), sess.Context)
	in, out := l.conn.in.Load(), l.conn.out.Load()
	defer func() {
		// First: the session's own end is not to close the connection, on which
		// the API server's refusal to switch may still have to go out.
		stop()
		done()
		sess.End(map[string]any{"rx": l.conn.in.Load() - in, "tx": l.conn.out.Load() - out})
	}()
	l.server.proxy.ServeHTTP(w, hr.WithContext(ctx))
}

// buffers are what answers are copied through.
type buffers struct{ pool sync.Pool }

func (b *buffers) Get() []byte {
	if p, ok := b.pool.Get().(*[]byte); ok {
		return *p
	}
	return make([]byte, copyBuffer)
}

func (b *buffers) Put(p []byte) { b.pool.Put(&p) }
