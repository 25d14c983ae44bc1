package jump

import (
	"fmt"
	"maps"
	"sync"
	"time"

	"github.com/sallyport/sallyport"
)

// usage is what one user has open.
type usage struct {
	connections, channels int
	refusals              allowance
}

// place is one connection of one user, from the proof on.
type place struct {
	server   *Server
	identity sallyport.Identity
	user     *usage
	once     sync.Once
}

// enter gives somebody a place, within the bounds.
func (s *Server) enter(id sallyport.Identity) (*place, *sallyport.Problem) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.users == nil {
		s.users = make(map[string]*usage)
	}
	s.sweepLocked(time.Now())
	u := s.users[id.Name]
	if u == nil {
		u = &usage{}
	}
	switch {
	case s.left:
		return nil, gone()
	case s.all >= s.maxConnections():
		return nil, &sallyport.Problem{Kind: sallyport.ErrExhausted, Fact: "too many connections to the jump server", Hint: "try again in a minute"}
	case u.connections >= s.maxUserConnections():
		return nil, &sallyport.Problem{Kind: sallyport.ErrExhausted,
			Fact: fmt.Sprintf("you have %d connections to the jump server, the most that it takes", u.connections), Hint: "end others first"}
	}
	s.all++
	u.connections++
	s.users[id.Name] = u
	return &place{server: s, identity: id, user: u}, nil
}

func (p *place) leave() {
	p.once.Do(func() {
		s := p.server
		s.mu.Lock()
		defer s.mu.Unlock()
		s.all--
		if p.user.connections--; p.user.connections == 0 && p.user.refusals.whole(time.Now()) {
			delete(s.users, p.identity.Name)
		}
	})
}

// sweepLocked forgets users who have left, once they may have as many refusals
// written down again as anybody.
func (s *Server) sweepLocked(now time.Time) {
	if now.Sub(s.swept) < burst*time.Second {
		return
	}
	s.swept = now
	maps.DeleteFunc(s.users, func(_ string, u *usage) bool { return u.connections == 0 && u.refusals.whole(now) })
}

// openOne counts a channel as open until both of its ends are closed: each may
// hold a window of unread bytes.
func (c *connection) openOne() *sallyport.Problem {
	s := c.server
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.left:
		return gone()
	case c.channels >= s.maxChannels() || c.place.user.channels >= s.maxUserChannels():
		return &sallyport.Problem{Kind: sallyport.ErrExhausted, Fact: "too many connections to nodes at once"}
	}
	c.channels++
	c.place.user.channels++
	return nil
}

// closeOne ends a channel. The last one of a process that has handed over ends
// the connection.
func (c *connection) closeOne() {
	s := c.server
	s.mu.Lock()
	c.channels--
	c.place.user.channels--
	last := s.left && c.channels == 0
	s.mu.Unlock()
	if last {
		c.ssh.Close()
	}
}

// gone is for who is still connected to a process that has handed over.
func gone() *sallyport.Problem {
	return &sallyport.Problem{Kind: sallyport.ErrUnavailable, Fact: "this gateway has been upgraded, and takes new connections only", Hint: "connect again"}
}
