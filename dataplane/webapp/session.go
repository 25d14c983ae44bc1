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
	"time"

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

	// askKnown is how long a request waits for an answer where there is a certificate
	// that is good, askTimeout where nothing can be done without. The answer is taken
	// up to askTimeout in any case: from an auth that is slow yes and no count too.
	askKnown   = 2 * time.Second
	askTimeout = 10 * time.Second

	// silentLatest is how long after auth's last yes, and after the last use, what
	// runs goes on beyond its certificate while auth does not answer. Auth itself ends
	// a session that was not used for as long.
	silentLatest = time.Hour

	askAtOnce   = 16               // questions of look
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

	mu      sync.Mutex
	asking  *inquiry        // that is under way; nil for none
	renewed time.Time       // when anew asked last
	grant   Grant           // the last with a certificate
	chain   tls.Certificate // nil Certificate before the first grant
	ends    time.Time       // of the web session at the latest, as auth said last; zero when it did not
	asked   time.Time       // when the question was asked to which auth said yes
	failed  time.Time       // when it did not answer
	outdone bool            // the user may do other things by now than the certificate says
	used    time.Time       // when the browser sent something last
	counted time.Time       // used, as auth knows it
	client  netip.Addr      // of the last request
	open    int
	lines   map[netip.Addr]*line
	may     context.Context         // of all lines, retired ones too: done when the user may do other things
	stop    context.CancelCauseFunc // of may
}

// inquiry is a question to auth about a session, the second one for another certificate
// included.
type inquiry struct {
	began time.Time     // by the machine's clock
	done  chan struct{} // closed when the answer has been acted on
	err   error         // why the session is not good; set before done
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
		lines: map[netip.Addr]*line{}}
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

// good asks auth when the last answer is too old to act on. One question is under
// way at a time; who comes meanwhile waits for its answer.
func (s *session) good(ctx context.Context, from netip.Addr) error {
	if err := context.Cause(s.ctx); err != nil {
		return err
	}
	q, mine := s.inquire(askLatest)
	switch {
	case q == nil:
		return nil
	case !mine && s.away(awayLatest): // somebody asks whether that is still so
		return nil
	case !mine:
		return s.await(ctx, q)
	case s.known():
		go s.answer(q, from, func() {})
		return s.await(ctx, q)
	}
	leave, err := s.place(ctx, from)
	if err != nil {
		forgotten := s.ctx.Err() != nil         // for another, or ended, while it waited
		s.server.sessions.drop(s, errForgotten) // who else waits begins anew
		s.settle(q, errForgotten)
		if forgotten && ctx.Err() == nil {
			return context.Cause(s.ctx)
		}
		return err
	}
	go s.answer(q, from, leave)
	return s.await(ctx, q)
}

// anewAfter is how often the session's requests that break off make auth be asked: an
// application that is down breaks all of them off.
const anewAfter = time.Second

// anew asks auth, however young its last answer is, but for one to this very question: an
// agent that breaks a request off may know of a lock that this gateway has not heard of yet.
func (s *session) anew(ctx context.Context, from netip.Addr) error {
	if !s.anewNow() {
		return nil
	}
	for range 2 { // a question that was under way may have been asked before
		q, mine := s.inquire(0)
		if q == nil {
			return nil
		}
		if mine {
			go s.answer(q, from, func() {})
		}
		err := s.await(ctx, q)
		if ctx.Err() != nil {
			return context.Cause(ctx) // the answer ends the request, before it is here
		}
		if err != nil || mine {
			return err
		}
	}
	return nil
}

// anewNow says that auth is to be asked by anew, or is being asked already.
func (s *session) anewNow() bool {
	now := s.server.now()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.asking != nil {
		return true
	}
	if now.Sub(s.renewed) < anewAfter {
		return false
	}
	s.renewed = now
	return true
}

// place is one among the strangers, for a request and as long as there is the session.
func (s *session) place(ctx context.Context, from netip.Addr) (leave func(), err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(s.ctx, cancel)()
	return s.server.strangers.enter(ctx, from)
}

// inquire returns the question that is under way, or begins one: then it is the
// caller's to answer or settle. nil when the last answer is younger than most.
func (s *session) inquire(most time.Duration) (q *inquiry, mine bool) {
	now := s.server.now()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.freshLocked(now, most) {
		return nil, false
	}
	if s.asking != nil {
		return s.asking, false
	}
	s.asking = &inquiry{began: time.Now(), done: make(chan struct{})}
	return s.asking, true
}

// answer asks auth, acts on what it says, and gives the caller's place back. It waits for
// nobody and ends within askTimeout, or with the session.
func (s *session) answer(q *inquiry, from netip.Addr, leave func()) {
	defer leave()
	s.settle(q, s.ask(from))
}

// settle ends a question.
func (s *session) settle(q *inquiry, err error) {
	if why := context.Cause(s.ctx); why != nil {
		err = why // whatever the question made of that
	}
	s.mu.Lock()
	s.asking = nil
	s.mu.Unlock()
	q.err = err
	close(q.done)
}

// await waits for an answer: where there is a certificate that is good for askKnown
// since the question was asked.
func (s *session) await(ctx context.Context, q *inquiry) error {
	wait := time.NewTimer(time.Until(q.began.Add(s.server.askKnown())))
	defer wait.Stop()
	for {
		select {
		case <-q.done:
			return q.err
		case <-wait.C:
			if s.sound() {
				return nil
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (s *Server) askKnown() time.Duration {
	if s.patience == 0 {
		return askKnown
	}
	return s.patience
}

// known says that auth has vouched for it before.
func (s *session) known() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.chain.Certificate != nil
}

// sound says that there is a certificate by which a request may go on.
func (s *session) sound() bool {
	now := s.server.now()
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.soundLocked(now)
}

// stands says that what runs may go on although auth did not answer: to the end of the
// certificate, and for a while beyond. Nothing new begins then.
func (s *session) stands() bool {
	now := s.server.now()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.soundLocked(now) {
		return true
	}
	heard := s.asked
	if s.used.Before(heard) {
		heard = s.used
	}
	return s.ctx.Err() == nil && !s.outdone && s.open > 0 && now.Before(s.ends) && now.Sub(heard) < silentLatest
}

// fresh says that no question is due: the last answer is young, or auth is away
// and the certificate is good.
func (s *session) fresh(most time.Duration) bool {
	now := s.server.now()
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.freshLocked(now, most)
}

func (s *session) freshLocked(now time.Time, most time.Duration) bool {
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

// soundLocked says that the session has not ended, nor its certificate, and that this
// says what the user may do.
func (s *session) soundLocked(now time.Time) bool {
	return s.ctx.Err() == nil && s.chain.Certificate != nil && !s.outdone && now.Before(s.grant.Expires)
}

// awayLocked counts from when a question failed, not from when it was asked: while
// it is under way nobody knows yet what auth will say.
func (s *session) awayLocked(now time.Time, most time.Duration) bool {
	return s.failed.After(s.asked) && now.Sub(s.failed) < most
}

// ask asks auth, for the one inquiry that is under way.
func (s *session) ask(from netip.Addr) error {
	// Not the context of a request: others wait too, and an answer that comes late counts.
	ctx, cancel := context.WithTimeout(s.ctx, askTimeout)
	defer cancel()
	g, err := s.question(ctx, from, s.wantsCertificate())
	if err == nil && g.Certificate == nil && s.differs(g) {
		// Roles are in the certificate: who has others now gets another one.
		s.outdo()
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
		if err != nil && !s.stands() {
			s.server.sessions.drop(s, err)
		}
		return err
	case errors.As(err, &p) && (errors.Is(p, sallyport.ErrUnauthorized) || errors.Is(p, sallyport.ErrDenied) || errors.Is(p, sallyport.ErrNotFound)):
		s.server.sessions.drop(s, p)
		return p
	case s.fresh(askLatest): // auth is away
		return nil
	}
	if !s.stands() {
		s.server.sessions.drop(s, err)
	}
	return err
}

// outdo notes that auth has said that the certificate is not what the user may do.
func (s *session) outdo() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.outdone = true
}

// question is one call to auth.
func (s *session) question(ctx context.Context, from netip.Addr, certify bool) (Grant, error) {
	now := s.server.now()
	s.mu.Lock()
	q := Question{Session: s.cookie, App: s.app, Client: from, Quiet: s.chain.Certificate != nil && !s.used.After(s.counted)}
	used := s.used
	s.mu.Unlock()
	if certify {
		q.Key = s.public
	}
	g, err := s.server.Desk.Renew(ctx, q)
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		s.failed = s.server.now()
		return Grant{}, err
	}
	s.asked, s.counted, s.ends = now, used, g.Ends
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
	s.mu.Lock()
	s.grant, s.outdone = g, false
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
	asked := v.now()
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
	s.asked, s.ends, s.used = asked, g.Ends, v.now() // nobody else has it yet
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
// said goodbye to, and no question of theirs is under way.
func (s *Server) Run(ctx context.Context) error {
	places := make(chan struct{}, askAtOnce)
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	defer func() {
		all := s.sessions.list()
		for _, one := range all {
			s.sessions.drop(one, context.Canceled)
		}
		for _, one := range all {
			one.settled()
		}
		s.bid()
	}()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			s.look(ctx, places)
		}
	}
}

// settled waits for the question that is under way: it ends with its session.
func (s *session) settled() {
	s.mu.Lock()
	q := s.asking
	s.mu.Unlock()
	if q != nil {
		<-q.done
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
var errAway = errors.New("auth has not answered for too long, and the certificate has ended")

// look goes once over all sessions, those first about which auth was asked longest
// ago. It waits for no answer, but for a place among the questions, and not beyond its
// round: while auth is slow the others are due in the next one, and those that may not go on
// without its word are over.
func (s *Server) look(ctx context.Context, places chan struct{}) {
	ctx, cancel := context.WithTimeout(ctx, lookEvery)
	defer cancel()
	full := false
	for _, one := range s.due() {
		if !full {
			select {
			case places <- struct{}{}:
				one.check(func() { <-places })
				continue
			case <-ctx.Done():
				full = true
			}
		}
		if !one.stands() {
			s.sessions.drop(one, errAway)
		}
	}
}

// due are the sessions to ask about, in that order. It forgets those that nobody uses.
func (s *Server) due() []*session {
	type turn struct {
		session *session
		asked   time.Time
	}
	var turns []turn
	for _, one := range s.sessions.list() {
		used, open := one.standing()
		if open == 0 && s.now().Sub(used) > forgetAfter && one.known() {
			s.sessions.drop(one, errForgotten)
		} else if asked, due := one.due(); due {
			turns = append(turns, turn{one, asked})
		}
	}
	slices.SortFunc(turns, func(a, b turn) int { return a.asked.Compare(b.asked) })
	out := make([]*session, len(turns))
	for i, t := range turns {
		out[i] = t.session
	}
	return out
}

// due says that something has happened, or goes on, since auth was asked, and that
// nobody asks. asked is when the last question was that has an end.
func (s *session) due() (asked time.Time, due bool) {
	now := s.server.now()
	s.mu.Lock()
	defer s.mu.Unlock()
	if asked = s.asked; asked.Before(s.failed) {
		asked = s.failed
	}
	return asked, s.asking == nil && !s.freshLocked(now, askAfter) && s.chain.Certificate != nil && (s.open > 0 || s.used.After(s.counted))
}

// check asks, unless a request does, and gives the caller's place back with the answer.
func (s *session) check(leave func()) {
	q, mine := s.inquire(askAfter)
	if !mine {
		leave()
		return
	}
	s.mu.Lock()
	from := s.client
	s.mu.Unlock()
	go s.checked(q, from, leave)
}

// checked is answer, for nobody who would tell of its error.
func (s *session) checked(q *inquiry, from netip.Addr, leave func()) {
	s.answer(q, from, leave)
	if q.err != nil {
		s.server.log().Debug("a browser's session", "app", s.app, "error", q.err)
	}
}
