package webapp

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net/netip"
	"reflect"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/sallyport/sallyport"
)

const (
	// askAfter is when auth is asked again about a session that is in use: so
	// soon it is over after a logout anywhere. A request waits for the answer
	// when it is as old as askLatest.
	askAfter  = 3 * time.Second
	askLatest = 10 * time.Second

	// askAway is when auth is asked again that did not answer. Until it has, others
	// than the one who asks go on for at most awayLatest.
	askAway    = 2 * time.Second
	awayLatest = 10 * time.Second

	// askKnown is how long an answer is waited for by who holds a certificate that
	// is good, askTimeout by who can do nothing without.
	askKnown   = 2 * time.Second
	askTimeout = 10 * time.Second

	askAtOnce   = 16               // questions about sessions that are known
	renewBefore = 5 * time.Minute  // of a certificate's ten
	forgetAfter = 10 * time.Minute // a session that nobody uses
	lookEvery   = time.Second
	bidEvery    = 10 * time.Millisecond
	bidWithin   = 2 * time.Second

	maxSessions = 16384
	maxOpen     = 256 // requests of one session at a time
)

// key names a session here: a hash, so that nothing finds a cookie by guessing
// a part of it.
type key [sha256.Size]byte

func keyOf(app, cookie string) key { return sha256.Sum256([]byte(app + "\x00" + cookie)) }

// sessions are those that this gateway has the keys of.
type sessions struct {
	mu  sync.Mutex
	all map[key]*session
}

// session is one browser at one application.
type session struct {
	server *Server
	app    string
	cookie string
	key    *ecdsa.PrivateKey
	public []byte // of key; PKIX
	ctx    context.Context
	cancel context.CancelCauseFunc

	asking chan struct{} // room for the one who asks auth

	mu      sync.Mutex
	grant   Grant           // the last, with the certificate of certificate
	chain   tls.Certificate // nil Certificate before the first grant
	asked   time.Time       // when auth said yes
	failed  time.Time       // when it did not answer
	silent  bool            // it let the last question's time pass
	used    time.Time       // when the browser sent something last
	counted time.Time       // used, as auth knows it
	client  netip.Addr      // of the last request
	open    int
	lines   map[netip.Addr]*line
	may     context.Context         // of all lines, retired ones too: done when the user may do other things
	stop    context.CancelCauseFunc // of may
}

// session returns the one of a cookie, if it is good now.
func (v *visit) session(ctx context.Context, cookie string) (*session, error) {
	if !letters(cookie, sessionSize) {
		return nil, gone()
	}
	for range 3 {
		s, err := v.sessions.find(v, cookie)
		if err != nil {
			return nil, err
		}
		if err := s.good(ctx, v.client.Addr()); !errors.Is(err, errForgotten) {
			return s, err
		}
	}
	return nil, errForgotten
}

// find returns the session of a cookie, or a new one that auth has to vouch for.
func (t *sessions) find(v *visit, cookie string) (*session, error) {
	k := keyOf(v.app, cookie)
	t.mu.Lock()
	s := t.all[k]
	t.mu.Unlock()
	if s != nil {
		return s, nil
	}
	s, err := v.newSession(cookie)
	if err != nil {
		return nil, err
	}
	return t.add(k, s)
}

func (v *visit) newSession(cookie string) (*session, error) {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	public, err := x509.MarshalPKIXPublicKey(&k.PublicKey)
	if err != nil {
		return nil, err
	}
	s := &session{server: v.Server, app: v.app, cookie: cookie, key: k, public: public, client: v.client.Addr(),
		asking: make(chan struct{}, 1), lines: map[netip.Addr]*line{}}
	s.ctx, s.cancel = context.WithCancelCause(context.Background())
	s.may, s.stop = context.WithCancelCause(s.ctx)
	return s, nil
}

// add enters a session, or returns the one that is there by now. The one that was
// unused for longest makes room.
func (t *sessions) add(k key, s *session) (*session, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.all == nil {
		t.all = map[key]*session{}
	}
	if there := t.all[k]; there != nil {
		return there, nil
	}
	if len(t.all) >= maxSessions && !t.makeRoomLocked() {
		return nil, &sallyport.Problem{Kind: sallyport.ErrExhausted, Fact: "too many browsers at once", Hint: "try again in a moment"}
	}
	t.all[k] = s
	return s, nil
}

func (t *sessions) makeRoomLocked() bool {
	var oldest key
	var since time.Time
	found := false
	for k, s := range t.all {
		if used, open := s.standing(); open == 0 && (!found || used.Before(since)) {
			oldest, since, found = k, used, true
		}
	}
	if found {
		t.all[oldest].over(errForgotten)
		delete(t.all, oldest)
	}
	return found
}

// errForgotten: the session is good, and its cookie makes it anew.
var errForgotten = errors.New("session is not in use")

// end ends a session and all that it does.
func (t *sessions) end(k key, why error) {
	t.mu.Lock()
	s := t.all[k]
	delete(t.all, k)
	t.mu.Unlock()
	if s != nil {
		s.over(why)
	}
}

// drop ends the very session.
func (t *sessions) drop(s *session, why error) {
	k := keyOf(s.app, s.cookie)
	t.mu.Lock()
	if t.all[k] == s {
		delete(t.all, k)
	}
	t.mu.Unlock()
	s.over(why)
}

func (t *sessions) list() []*session {
	t.mu.Lock()
	defer t.mu.Unlock()
	out := make([]*session, 0, len(t.all))
	for _, s := range t.all {
		out = append(out, s)
	}
	return out
}

func (s *session) standing() (used time.Time, open int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.used, s.open
}

// over ends what runs, and lets go of the lines.
func (s *session) over(why error) {
	s.cancel(why)
	s.mu.Lock()
	lines := s.lines
	s.lines = map[netip.Addr]*line{}
	s.mu.Unlock()
	for _, l := range lines {
		l.retire()
	}
}

// good asks auth when the last answer is too old to act on. Only one asks at a
// time; the others wait for the answer.
func (s *session) good(ctx context.Context, from netip.Addr) error {
	if s.fresh(askLatest) {
		return nil
	}
	select {
	case s.asking <- struct{}{}:
	default:
		if s.away(awayLatest) { // somebody asks whether that is still so
			return nil
		}
		select {
		case s.asking <- struct{}{}:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	defer func() { <-s.asking }()
	if err := context.Cause(s.ctx); err != nil {
		return err // who has asked meanwhile was told so
	}
	if s.fresh(askLatest) {
		return nil
	}
	if s.known() {
		return s.ask(ctx, from)
	}
	leave, err := s.server.strangers.enter(ctx, from)
	if err != nil {
		s.server.sessions.drop(s, errForgotten) // who else waits begins anew
		return err
	}
	defer leave()
	return s.ask(ctx, from)
}

// known says that auth has vouched for it before.
func (s *session) known() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.chain.Certificate != nil
}

// holds says that there is a certificate, and that it has not ended.
func (s *session) holds() bool {
	now := s.server.now()
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.chain.Certificate != nil && now.Before(s.grant.Expires)
}

// fresh says that no question is due: the last answer is young, or auth is away
// and the certificate is good.
func (s *session) fresh(most time.Duration) bool {
	now := s.server.now()
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.soundLocked(now) && (now.Sub(s.asked) < most || s.awayLocked(now, askAway))
}

// away says that auth did not answer the last question, which ended less than most
// ago, and that the certificate is good.
func (s *session) away(most time.Duration) bool {
	now := s.server.now()
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.soundLocked(now) && s.awayLocked(now, most)
}

// soundLocked says that the session has not ended, nor its certificate.
func (s *session) soundLocked(now time.Time) bool {
	return s.ctx.Err() == nil && s.chain.Certificate != nil && now.Before(s.grant.Expires)
}

// awayLocked counts from when a question failed, not from when it was asked: while
// it is under way nobody knows yet what auth will say.
func (s *session) awayLocked(now time.Time, most time.Duration) bool {
	return s.failed.After(s.asked) && now.Sub(s.failed) < most
}

// ask asks auth, with asking held.
func (s *session) ask(ctx context.Context, from netip.Addr) error {
	g, err := s.question(ctx, from, s.wantsCertificate())
	if err == nil && g.Certificate == nil && s.differs(g) {
		// Roles are in the certificate: who has others now gets another one.
		if g, err = s.question(ctx, from, true); err == nil && g.Certificate == nil {
			err = errors.New("auth gave no certificate")
		}
		if err != nil { // nothing goes on with the roles of before
			s.server.sessions.drop(s, err)
			return err
		}
	}
	var p *sallyport.Problem
	switch {
	case err == nil:
		err = s.take(g)
		if err != nil && !s.known() {
			s.server.sessions.drop(s, err)
		}
		return err
	case errors.As(err, &p) && (errors.Is(p, sallyport.ErrUnauthorized) || errors.Is(p, sallyport.ErrDenied) || errors.Is(p, sallyport.ErrNotFound)):
		s.server.sessions.drop(s, p)
		return p
	case s.fresh(askLatest): // auth is away
		return nil
	}
	if !s.holds() {
		s.server.sessions.drop(s, err)
	}
	return err
}

// question is one call to auth.
func (s *session) question(ctx context.Context, from netip.Addr, certify bool) (Grant, error) {
	now := s.server.now()
	s.mu.Lock()
	q := Question{Session: s.cookie, App: s.app, Client: from, Quiet: s.chain.Certificate != nil && !s.used.After(s.counted)}
	used, most := s.used, askTimeout
	if s.soundLocked(now) {
		most = askKnown
	}
	s.mu.Unlock()
	if certify {
		q.Key = s.public
	}
	// Not the first one's context: the others wait too.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), most)
	defer cancel()
	g, err := s.server.Desk.Renew(ctx, q)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.silent = err != nil && ctx.Err() != nil
	if err != nil {
		s.failed = s.server.now()
		return Grant{}, err
	}
	s.asked, s.counted = now, used
	return g, nil
}

// wantsCertificate says that there is none, or one that ends soon.
func (s *session) wantsCertificate() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.chain.Certificate == nil || s.grant.Expires.Sub(s.server.now()) < renewBefore
}

func (s *session) differs(g Grant) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return g.User != s.grant.User || !slices.Equal(g.Roles, s.grant.Roles) || !reflect.DeepEqual(g.Traits, s.grant.Traits)
}

// take notes an answer. With another certificate new requests go by new lines;
// what runs stays on the old ones, and ends when the user may now do other things.
func (s *session) take(g Grant) error {
	if g.Certificate == nil {
		return nil
	}
	leaf, err := x509.ParseCertificate(g.Certificate)
	if err != nil {
		return err
	}
	changed := s.known() && s.differs(g)
	now := s.server.now()
	s.mu.Lock()
	s.grant, s.asked = g, now
	s.chain = tls.Certificate{Certificate: [][]byte{g.Certificate}, PrivateKey: s.key, Leaf: leaf}
	lines := s.lines
	s.lines = map[netip.Addr]*line{}
	stop := s.stop
	if changed {
		s.may, s.stop = context.WithCancelCause(s.ctx)
	}
	s.mu.Unlock()
	if changed {
		stop(&sallyport.Problem{Kind: sallyport.ErrUnauthorized, Fact: "what you may do here has changed", Hint: "open the page again"})
	}
	for _, l := range lines {
		l.retire()
	}
	return nil
}

// redeem makes a session by a code, and returns its cookie.
func (v *visit) redeem(ctx context.Context, code, verifier string) (cookie string, err error) {
	leave, err := v.strangers.enter(ctx, v.client.Addr())
	if err != nil {
		return "", err
	}
	defer leave()
	s, err := v.newSession("")
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	g, err := v.Desk.Redeem(ctx, Code{Code: code, Verifier: verifier, App: v.app, Key: s.public, Client: v.client.Addr()})
	if err != nil {
		return "", err
	}
	if !letters(g.Session, sessionSize) || g.Certificate == nil {
		return "", errors.New("auth gave no session")
	}
	s.cookie = g.Session
	if err := s.take(g); err != nil {
		return "", err
	}
	s.used = v.now() // nobody else has it yet
	_, err = v.sessions.add(keyOf(v.app, s.cookie), s)
	return s.cookie, err
}

// end ends a session at auth, and then here: what is ended here alone would begin
// again by its cookie.
func (v *visit) end(ctx context.Context, cookie string) error {
	leave, err := v.strangers.enter(ctx, v.client.Addr())
	if err != nil {
		return err
	}
	defer leave()
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	if err := v.Desk.End(ctx, cookie, v.app); err != nil && !errors.Is(err, sallyport.ErrUnauthorized) {
		return err
	}
	v.sessions.end(keyOf(v.app, cookie), gone())
	return nil
}

// enter begins a request. leave must follow.
func (s *session) enter(v *visit) (*line, error) {
	now := s.server.now()
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := context.Cause(s.ctx); err != nil {
		return nil, err
	}
	if s.open >= maxOpen {
		return nil, &sallyport.Problem{Kind: sallyport.ErrExhausted, Fact: "too many requests of one browser at once", Hint: "close some of its pages"}
	}
	l, err := s.lineLocked(v.client)
	if err != nil {
		return nil, err
	}
	s.open++
	s.used, s.client = now, v.client.Addr()
	return l, nil
}

func (s *session) leave(l *line) {
	s.mu.Lock()
	s.open--
	s.mu.Unlock()
	l.leave()
}

// touch notes that something has come from the browser, or goes to it.
func (s *session) touch() {
	now := s.server.now()
	s.mu.Lock()
	if now.Sub(s.used) > lookEvery {
		s.used = now
	}
	s.mu.Unlock()
}

// Run asks auth about the sessions that are in use, and forgets those that are
// not, until ctx is done. Then all end, and Run returns when WebSockets have been
// said goodbye to.
func (s *Server) Run(ctx context.Context) error {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	defer func() {
		for _, one := range s.sessions.list() {
			s.sessions.drop(one, context.Canceled)
		}
		s.bid()
	}()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			s.look(ctx)
		}
	}
}

// bid waits for the goodbyes to WebSockets, each of which has its own bound.
func (s *Server) bid() {
	tick := time.NewTicker(bidEvery)
	defer tick.Stop()
	for end := time.Now().Add(bidWithin); s.Upgraded() > 0 && time.Now().Before(end); {
		<-tick.C
	}
}

// errAway: nobody vouches for a session any more.
var errAway = errors.New("auth does not answer, and the certificate has ended")

// look goes once over all sessions. Once auth has let the time of a question pass
// the others are not asked in this round, or hundreds would each wait as long in turn:
// they are due in the next one, and those whose certificate has ended are over.
func (s *Server) look(ctx context.Context) {
	var silent atomic.Bool
	var g errgroup.Group
	g.SetLimit(askAtOnce)
	for _, one := range s.sessions.list() {
		used, open := one.standing()
		switch {
		case open == 0 && s.now().Sub(used) > forgetAfter && one.known():
			s.sessions.drop(one, errForgotten)
		case one.due():
			g.Go(func() error {
				switch {
				case !silent.Load():
					if one.check(ctx) {
						silent.Store(true)
					}
				case !one.holds():
					s.sessions.drop(one, errAway)
				}
				return nil
			})
		}
	}
	_ = g.Wait() // none has an error
}

// due says that something has happened, or goes on, since auth was asked.
func (s *session) due() bool {
	if s.fresh(askAfter) {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.chain.Certificate != nil && (s.open > 0 || s.used.After(s.counted))
}

// check asks, unless a request does. It says whether auth was silent.
func (s *session) check(ctx context.Context) (silent bool) {
	select {
	case s.asking <- struct{}{}:
	default:
		return false
	}
	defer func() { <-s.asking }()
	if s.fresh(askAfter) || s.ctx.Err() != nil {
		return false
	}
	s.mu.Lock()
	from := s.client
	s.mu.Unlock()
	if err := s.ask(ctx, from); err != nil {
		s.server.log().Debug("a browser's session", "app", s.app, "error", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.silent
}
