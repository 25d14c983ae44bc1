package postgres

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/dataplane/database"
	"github.com/sallyport/sallyport/dataplane/session"
)

// keyID is the process id and the secret key that a client got from us.
type keyID struct{ pid, key uint32 }

// cancelRequest is a client's wish to cancel what runs in another connection.
type cancelRequest struct {
	pid uint32
	key []byte
}

// parseCancel reads what follows the code of a CancelRequest. Protocol 3.2 has
// longer keys; ours are of 3.0.
func parseCancel(body []byte) (*startup, error) {
	if len(body) != 8 {
		return nil, malformedf("cancel request of %d bytes", startupMin+len(body))
	}
	return &startup{cancel: &cancelRequest{pid: binary.BigEndian.Uint32(body), key: body[4:]}}, nil
}

// registry knows the live sessions by the process ids that clients got.
type registry struct {
	mu   sync.Mutex
	byID map[uint32]*live
	next uint16
}

// add gives a session an id under the tag. It reports false when all are taken.
func (r *registry) add(tag uint16, l *live) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.byID == nil {
		r.byID = map[uint32]*live{}
	}
	for range 1 << 16 {
		r.next++
		pid := uint32(tag)<<16 | uint32(r.next)
		if r.next == 0 || r.byID[pid] != nil {
			continue
		}
		l.id.pid = pid
		r.byID[pid] = l
		return true
	}
	return false
}

func (r *registry) remove(l *live) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.byID[l.id.pid] == l {
		delete(r.byID, l.id.pid)
	}
}

// hold finds the session that the request is for, and keeps it from ending
// until its cancels.Done. The keys are compared in constant time.
func (r *registry) hold(req *cancelRequest) *live {
	r.mu.Lock()
	defer r.mu.Unlock()
	l := r.byID[req.pid]
	if l == nil {
		return nil
	}
	var key [4]byte
	binary.BigEndian.PutUint32(key[:], l.id.key)
	if subtle.ConstantTimeCompare(key[:], req.key) != 1 {
		return nil
	}
	l.cancels.Add(1)
	return l
}

// rename takes the server's BackendKeyData and returns the client's: by its
// process id a gateway finds this agent, and neither number is the server's.
func (l *live) rename(body []byte) ([]byte, error) {
	if l.sending != nil {
		return nil, unreachable(l.name, fmt.Errorf("two BackendKeyData"))
	}
	if err := l.real.Decode(body); err != nil {
		return nil, unreachable(l.name, err)
	}
	var tag uint16
	if l.server.CancelTag != nil {
		tag = l.server.CancelTag()
	}
	key := make([]byte, 4)
	rand.Read(key)
	l.id.key = binary.BigEndian.Uint32(key)
	l.sending = make(chan struct{}, 1)
	if !l.server.sessions.add(tag, l) {
		return nil, refuse(stateTooMany, sallyport.ErrExhausted, "the agent has too many sessions of this database", "close some and try again")
	}
	ours := pgproto3.BackendKeyData{ProcessID: l.id.pid, SecretKey: key}
	return ours.Encode(nil)
}

// forget takes the session out of the registry and waits for the cancel
// requests that are still under way.
func (l *live) forget() {
	l.server.sessions.remove(l)
	l.cancels.Wait()
}

// Cancel asks the database to cancel what the session runs that got this
// process id and key. It is for requests that a gateway passed on and whose
// sender is not known: the key must do. It does not wait, and a request that
// fits no session does nothing.
func (s *Server) Cancel(pid, key uint32) {
	l := s.sessions.hold(&cancelRequest{pid: pid, key: binary.BigEndian.AppendUint32(nil, key)})
	if l == nil {
		return
	}
	go l.cancelHeld(context.Background())
}

// cancelAs serves a CancelRequest inside TLS. The sender is known here, and
// may cancel only what the same identity runs. As with the real server, the
// sender is told nothing; that the connection closes means that it was passed
// on.
func (s *Server) cancelAs(ctx context.Context, c *session.Candidate, req *cancelRequest) {
	if c.Refusal != nil {
		return
	}
	if l := s.sessions.hold(req); l == nil {
		if s.CancelElsewhere != nil {
			s.CancelElsewhere(c.Identity, req.pid, binary.BigEndian.Uint32(req.key))
		}
	} else if s.mayCancel(l, c.Identity) {
		l.cancelHeld(ctx)
	}
}

// CancelFor is Cancel for a sender who is known: only what the same identity
// runs is cancelled.
func (s *Server) CancelFor(holder sallyport.Identity, pid, key uint32) {
	l := s.sessions.hold(&cancelRequest{pid: pid, key: binary.BigEndian.AppendUint32(nil, key)})
	if l != nil && s.mayCancel(l, holder) {
		go l.cancelHeld(context.Background())
	}
}

// mayCancel lets go of the session when not.
func (s *Server) mayCancel(l *live, holder sallyport.Identity) bool {
	if sameHolder(l.sess.Identity, holder) {
		return true
	}
	l.cancels.Done()
	s.log().Warn("cancel request for a session of somebody else",
		slog.String("session", l.sess.ID), slog.String("user", holder.Name))
	return false
}

// cancelLater sends the request on our own account, because the session is
// being ended while its query runs: the server would notice that the client is
// gone only when it has something to send.
func (l *live) cancelLater() {
	if l.sending == nil { // the server gave no key
		return
	}
	l.cancels.Add(1)
	go l.cancelHeld(context.Background())
}

func sameHolder(a, b sallyport.Identity) bool {
	return a.Kind == b.Kind && a.Cluster == b.Cluster && a.Name == b.Name
}

// cancelHeld sends the request to the server, for a session that is held. One
// at a time: a second would say nothing new.
func (l *live) cancelHeld(ctx context.Context) {
	defer l.cancels.Done()
	select {
	case l.sending <- struct{}{}:
		defer func() { <-l.sending }()
	default:
		return
	}
	if err := l.cancelNow(ctx); err != nil {
		l.server.log().Warn("cancel request not delivered", slog.String("session", l.sess.ID), slog.Any("error", err))
	}
}

// cancelNow dials the server for a CancelRequest. The server closes the
// connection when it has acted ("Canceling Requests in Progress").
func (l *live) cancelNow(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, l.bounds.Cancel)
	defer cancel()
	conn, err := l.dial(ctx)
	if err != nil {
		return err
	}
	defer database.HangUp(conn)
	until, _ := ctx.Deadline()
	conn.SetDeadline(until)
	request := pgproto3.CancelRequest{ProcessID: l.real.ProcessID, SecretKey: l.real.SecretKey}
	b, err := request.Encode(nil)
	if err != nil {
		return err
	}
	if _, err := conn.Write(b); err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, io.LimitReader(conn, greetingMax))
	if time.Now().Before(until) {
		return nil // closed, in whatever way
	}
	return err
}
