package tunnel

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"math/rand/v2"
	"sync"
	"time"

	tunnelv1 "github.com/sallyport/sallyport/wire/sallyport/tunnel/v1"
)

// An upgrade of a gateway, at the agent. The new process has the gateway's port
// and this tunnel's parked connections; the old one says so with a drain:
//
//	up ── drain, successor ──▶ leaving ── dial, hello, welcome ──▶ the next link is up
//	                             │  parked connections serve            │
//	                             │  reports are kept                    │ they are said again
//	                             ▼                                      ▼
//	                    the old process ends it               this one ends the old link
//
// What is parked is authenticated with the old link's keys as long as it is used.
// Only the gateway closes it.
//
// Before a certificate ends, its own or the gateway's, a link leaves by itself in the
// same way, but that it may speak until the next one is up: all tunnels of an agent end
// with its certificate, and all of a gateway with the gateway's.

var (
	// errLeaving ends run: the gateway has a successor.
	errLeaving = errors.New("the gateway has a new process")

	// errRenewing ends run: the next link is to be known by newer certificates.
	errRenewing = errors.New("a certificate ends soon")

	// errFollowed ends the control connection to the old process.
	errFollowed = errors.New("the gateway's new process has the tunnel")
)

const (
	// successorFor is how long the very address is dialed at which the gateway was
	// reached, and not any that its name has.
	successorFor = 5 * time.Second

	// A report of the last repeatFor, at most maxReports of them, is said again to
	// the gateway's next process: the old one had stopped listening some time
	// before it said so, no longer than an upgrade may take.
	repeatFor  = 10 * time.Second
	maxReports = 4096
)

// successor is where the next process of a gateway is.
type successor struct {
	at    string
	since time.Time
}

func (s successor) address(now time.Time) string {
	if now.Sub(s.since) > successorFor {
		return ""
	}
	return s.at
}

func (a *agent) newLink(addr, target string) *link {
	l := &link{agent: a, addr: addr, target: target, dialing: make(chan struct{}, parallelDials), leaving: make(chan struct{})}
	l.voice = &voice{link: l}
	return l
}

// renewal is when a tunnel that came up now and whose certificates are good until then
// makes room for one with newer ones: in the last quarter of its time, and not too late
// in that. Agents do not come in step.
func renewal(now, until time.Time) time.Time {
	quarter := until.Sub(now) / 4
	if quarter <= 0 {
		return until
	}
	return until.Add(-quarter/2 - rand.N(quarter/2+1))
}

// certificateEnd is the end of the certificate that cfg shows; the zero time for none.
func certificateEnd(cfg *tls.Config) time.Time {
	if len(cfg.Certificates) == 0 {
		return time.Time{}
	}
	c := &cfg.Certificates[0]
	leaf := c.Leaf
	if leaf == nil && len(c.Certificate) > 0 {
		leaf, _ = x509.ParseCertificate(c.Certificate[0])
	}
	if leaf == nil {
		return time.Time{}
	}
	return leaf.NotAfter
}

// tick is called each second of a tunnel's life.
func (l *link) tick(now time.Time) {
	if refused := l.agent.Refused; refused != nil {
		if err := refused(l.gateway); err != nil {
			l.end(err)
			return
		}
	}
	if now.After(l.renew) {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.leaveLocked(errRenewing)
	}
}

// leaveLocked makes room for the next link to the gateway.
func (l *link) leaveLocked(why error) {
	if !l.isLeaving() {
		l.why = why
		close(l.leaving)
	}
}

// where is what to dial.
func (l *link) where() string {
	if l.target != "" {
		return l.target
	}
	return l.addr
}

// named is the address that was configured for one that is dialed: whether there
// is a proxy is said of that.
func (l *link) named(addr string) string {
	if addr == l.target {
		return l.addr
	}
	return addr
}

func (l *link) isLeaving() bool {
	select {
	case <-l.leaving:
		return true
	default:
		return false
	}
}

// takeOver is called behind the welcome: the link speaks for the one before it, if
// there is one, which ends.
func (l *link) takeOver(conn *tls.Conn) error {
	if l.elder == nil {
		return nil
	}
	l.voice = l.elder.voice
	again, err := l.voice.pass(l)
	if err != nil {
		return err
	}
	if err := putRaw(conn, again, greetLimit); err != nil {
		l.voice.hush(l)
		return err
	}
	l.elder.end(errFollowed)
	l.elder = nil
	return nil
}

// voice says to a gateway what has become of its streams, by whichever control
// connection leads to it now. Connection ids are unique: a report is good for the
// streams of all tunnels.
type voice struct {
	mu     sync.Mutex
	link   *link // nil between two processes of the gateway
	recent []report
}

type report struct {
	message *tunnelv1.Control
	said    time.Time
}

// say reports, and remembers what may have to be said again. It does not block.
func (v *voice) say(m *tunnelv1.Control) {
	v.mu.Lock()
	defer v.mu.Unlock()
	now := time.Now()
	old := 0
	for old < len(v.recent) && (now.Sub(v.recent[old].said) > repeatFor || len(v.recent)-old >= maxReports) {
		old++
	}
	v.recent = append(v.recent[old:], report{m, now})
	if v.link != nil {
		v.link.send(m)
	}
}

// hush ends a link's speaking: what is said from now on is for the next one.
func (v *voice) hush(l *link) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.link == l {
		v.link = nil
	}
}

// pass gives the voice to a link that has just come up, and returns the messages
// that it is to begin with.
func (v *voice) pass(l *link) (again []byte, err error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	now := time.Now()
	for _, r := range v.recent {
		if now.Sub(r.said) > repeatFor {
			continue
		}
		if again, err = AppendControl(again, r.message); err != nil {
			return nil, err
		}
	}
	v.link = l
	return again, nil
}
