//go:build unix

package gateway

import (
	"bytes"
	"errors"
	"time"

	"github.com/sallyport/sallyport/alpn"
	"github.com/sallyport/sallyport/dataplane/preamble"
	"github.com/sallyport/sallyport/dataplane/relay"
)

// A client of PostgreSQL that asks for TLS has been answered here: the name that it
// is routed by comes behind the answer. A static route's server has not heard of it,
// and PostgreSQL before 17, and PgBouncer, take no hello without the request. So the
// gateway says the request again, to the server:
//
//	client               gateway               server
//	SSLRequest ────────▶
//	           ◀──── 'S'
//	ClientHello ───────▶ [PROXY header]
//	                     SSLRequest ─────────▶
//	                                ◀───── 'S'
//	                     ClientHello ────────▶           from here on as for others
//
// Until the server has said 'S' it has got nothing of the client's, and any other may
// be asked instead. What ends TLS before a database knows no SSLRequest: a server that
// ends the connection over it, or answers something else, gets the hello at once on
// another one, and where that goes well, so do the clients of the time after it (directFor).

// asks says whether a server is to hear the client's SSLRequest.
func (c *conn) asks() bool {
	return c.said&saidSSL != 0 && c.routed == alpn.Static && c.up != nil && !c.up.direct && !c.choice.direct
}

// unasked says that no server has answered the request yet.
func (c *conn) unasked() bool {
	return (c.stage == connecting || c.stage == asking) && c.asks()
}

// offered is how much of the client's flight the far end is to get.
func (c *conn) offered() int {
	if c.unasked() {
		return 0
	}
	return c.flight
}

// hearYes reads the server's answer, which is one byte. What comes with it was put
// there by somebody else (CVE-2021-23214), and a server without TLS is none to go on
// with in clear: what the client has been promised is TLS.
func (c *conn) hearYes() {
	var answer [2]byte
	n, err := relay.Read(c.other, answer[:])
	switch {
	case errors.Is(err, relay.ErrAgain):
	case err == nil && n == 1 && answer[0] == preamble.PostgresYes && c.sent == len(c.head):
		c.stage = offering
		c.loop.Arm(c, c.bounds.Stage)
		c.goOn()
	case err == nil && bytes.IndexByte(postgresAnswers, answer[0]) >= 0:
		c.notTaken()
	default:
		c.notKnown()
	}
}

// postgresAnswers begin what a server of PostgreSQL says to an SSLRequest: yes, no,
// or an ErrorResponse.
var postgresAnswers = []byte{preamble.PostgresYes, preamble.PostgresNo, 'E'}

// goOn gives the server the flight. Its end may have been told together with its
// answer.
func (c *conn) goOn() {
	if _, err := c.send(); err != nil {
		c.tryNext(outcomeReset)
		return
	}
	if !c.firstByte() && c.goneOn() {
		c.unanswered()
	}
}

// notTaken: the server does not say just yes, or nothing. It is not left to rest for
// it, since anybody may ask a server of any route.
func (c *conn) notTaken() {
	c.counts.add(outcomeNotTaken)
	c.choice.untaken = true
	c.tryNext(outcomeNoPostgres)
}

// notKnown: the server speaks something else than PostgreSQL, or has ended. It may
// want TLS at once.
func (c *conn) notKnown() {
	to, left := c.choice.to, c.bounds.Stage-c.loop.Now().Sub(c.asked)
	if to == nil || left <= 0 || c.up.gone {
		c.notTaken()
		return
	}
	c.dropFar()
	fd, err := c.reach(to)
	if err != nil {
		c.notTaken()
		return
	}
	c.counts.add(outcomeNotTaken)
	c.choice.untaken, c.choice.direct = true, true
	c.begin(fd, min(left, c.bounds.Connect))
}

// learn notes whether the target that has got a hello at once, of a client that has
// asked for TLS, wanted it so.
func (c *conn) learn(direct bool) {
	t, now := c.choice.to, c.loop.Now()
	if !c.choice.direct || t == nil || c.said&saidSSL == 0 || t.directAt(now) == direct {
		return
	}
	var until *time.Time
	if direct {
		end := now.Add(directFor)
		until = &end
	}
	t.direct.Store(until)
}

// askAnew: an older process, which asked nobody, has begun the connection. Nothing
// has been said on it.
func (c *conn) askAnew() {
	if c.asks() {
		c.head, c.sent = c.up.head(c), 0
	}
}
