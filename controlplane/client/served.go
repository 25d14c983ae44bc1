package client

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/controlplane/ca/signed"
	sallyportv1 "github.com/sallyport/sallyport/wire/sallyport/v1"
)

const servedFile = "served.json"

const (
	// announceEvery keeps resource certificates (7 days) and assignments far
	// from their end.
	announceEvery = 12 * time.Hour

	// againEvery is how often auth is asked for what a gateway does not take.
	againEvery = time.Minute

	// refusedEvery is how soon a name that was refused is asked for again: its
	// owner may have gone.
	refusedEvery = 5 * time.Minute
)

// served is what auth lets an agent serve; JSON on disk.
type served struct {
	Assignment     []byte            `json:"assignment"` // encoded Signed
	Certificates   map[string][]byte `json:"certificates"`
	SSHCertificate string            `json:"ssh_certificate"`

	parsed *sallyportv1.Assignment
	leafs  map[string]*tls.Certificate
}

// Assignment returns the signed assignment, encoded; nil before the first.
func (h *Host) Assignment() []byte {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.served.Assignment
}

// AssignmentChanged is closed at the next change of Assignment.
func (h *Host) AssignmentChanged() <-chan struct{} {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.changed
}

// Resources are those that auth has assigned to this agent.
func (h *Host) Resources() []sallyport.Resource {
	h.mu.Lock()
	defer h.mu.Unlock()
	return ResourcesOf(h.served.parsed)
}

// CancelTag is the upper half of the process ids that this agent hands to
// PostgreSQL clients; 0 before the first assignment.
func (h *Host) CancelTag() uint16 {
	h.mu.Lock()
	defer h.mu.Unlock()
	return uint16(h.served.parsed.GetPgCancelTag())
}

// ServerCertificate meets access.Credentials.
func (h *Host) ServerCertificate(serverName string) (*tls.Certificate, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if c := h.served.leafs[serverName]; c != nil {
		return c, nil
	}
	return nil, &sallyport.Problem{Kind: sallyport.ErrNotFound, Fact: "this agent has no certificate for that name"}
}

// SetResources replaces what an agent asks to serve; auth is told soon. It may
// be called before Run.
func (h *Host) SetResources(resources []sallyport.Resource) {
	h.mu.Lock()
	h.serves = resources
	h.mu.Unlock()
	h.wakeAnnounce()
}

// AnnounceAgain has auth asked for a new assignment soon, once in a while: a gateway
// does not take the one that is here. When a copy of the directory has got a newer
// one, each of the two takes the other's tunnel away, and not more often than that.
func (h *Host) AnnounceAgain() {
	h.mu.Lock()
	now := time.Now()
	soon := now.Sub(h.again) < againEvery
	if !soon {
		h.again = now
	}
	h.mu.Unlock()
	if soon {
		return
	}
	h.cfg.Log.Warn("a gateway does not take this host's assignment, auth is asked for another one; is a copy of this data directory in use?", "dir", h.cfg.Dir)
	h.wakeAnnounce()
}

func (h *Host) wakeAnnounce() {
	select {
	case h.announced <- struct{}{}:
	default: // it will be told all of it
	}
}

func (h *Host) asked() []sallyport.Resource {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.serves
}

// announce tells auth what there is to serve: at once, then twice a day, and
// when it has changed.
func (h *Host) announce(ctx context.Context) error {
	return retrying(ctx, h.cfg.Log, "announce resources", func(ctx context.Context, progress func()) error {
		if err := h.untilGood(ctx); err != nil {
			return err
		}
		for {
			refused, err := h.announceOnce(ctx)
			if err != nil {
				return err
			}
			progress()
			wait := announceEvery
			if refused {
				wait = refusedEvery
			}
			if err := h.untilAnnounced(ctx, time.Now().Add(jitter(wait))); err != nil {
				return err
			}
		}
	})
}

// untilAnnounced waits for a time, or for something to announce. It is looked at the
// clock every minute: a timer stands still while its machine sleeps, and what was
// assigned may have ended by then.
func (h *Host) untilAnnounced(ctx context.Context, at time.Time) error {
	at = at.Round(0) // by the clock
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-h.announced:
			return nil
		case <-time.After(min(time.Until(at), lookEvery)):
			if !time.Now().Before(at) {
				return nil
			}
		}
	}
}

func (h *Host) announceOnce(ctx context.Context) (refused bool, err error) {
	tlsPub, sshPub, err := h.keys.public()
	if err != nil {
		return false, err
	}
	req := &sallyportv1.AnnounceRequest{TlsPublicKey: tlsPub, SshPublicKey: sshPub}
	for _, r := range h.asked() {
		req.Resources = append(req.Resources, ResourceToWire(r))
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	resp, err := h.api.Announce(ctx, connect.NewRequest(req))
	if err != nil {
		return false, problem(err)
	}
	for _, r := range resp.Msg.GetRefusals() {
		h.cfg.Log.Warn("auth refused a resource", "kind", r.GetKind(), "name", r.GetName(), "reason", r.GetReason())
	}
	s := served{Assignment: resp.Msg.GetAssignment(), Certificates: map[string][]byte{}, SSHCertificate: string(resp.Msg.GetSshCertificate())}
	for _, c := range resp.Msg.GetCertificates() {
		s.Certificates[c.GetServerName()] = c.GetCertificate()
	}
	if err := h.parseServed(&s); err != nil {
		return false, fmt.Errorf("auth's answer: %w", err)
	}
	if err := h.files.writeJSON(filepath.Join(h.cfg.Dir, servedFile), s); err != nil {
		return false, err
	}
	h.setServed(s)
	return len(resp.Msg.GetRefusals()) > 0, nil
}

func (h *Host) setServed(s served) {
	h.mu.Lock()
	defer h.mu.Unlock()
	same := bytes.Equal(h.served.Assignment, s.Assignment)
	h.served = s
	if !same {
		close(h.changed)
		h.changed = make(chan struct{})
	}
}

func (h *Host) loadServed() error {
	var s served
	found, err := readJSON(filepath.Join(h.cfg.Dir, servedFile), &s)
	if err == nil && !found {
		return nil
	}
	if err != nil && !errors.Is(err, errDamaged) {
		return err
	}
	if err == nil {
		err = h.parseServed(&s)
	}
	if err != nil {
		h.cfg.Log.Warn("what this agent served before does not verify; waiting for auth", "error", err)
		return nil
	}
	h.setServed(s)
	return nil
}

func (h *Host) parseServed(s *served) error {
	a, err := VerifyAssignment(h.keeper, s.Assignment, h.ID())
	if err != nil {
		return err
	}
	s.parsed = a
	s.leafs = map[string]*tls.Certificate{}
	for name, der := range s.Certificates {
		leaf, err := h.keys.leaf(der)
		if err != nil {
			return err
		}
		if !slices.Equal(leaf.DNSNames, []string{name}) {
			return fmt.Errorf("certificate for %q names %s", name, strings.Join(leaf.DNSNames, ", "))
		}
		s.leafs[name] = &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: h.keys.tls, Leaf: leaf}
	}
	return nil
}

// VerifyAssignment checks what an agent presents: auth's signature, the
// cluster, the agent, and the time.
func VerifyAssignment(k *Keeper, encoded []byte, agentID string) (*sallyportv1.Assignment, error) {
	var s sallyportv1.Signed
	if err := proto.Unmarshal(encoded, &s); err != nil {
		return nil, fmt.Errorf("assignment: %w", err)
	}
	if err := signed.Verify(k.Signers(), signed.Assignment, &s); err != nil {
		return nil, fmt.Errorf("assignment: %w", err)
	}
	var a sallyportv1.Assignment
	if err := proto.Unmarshal(s.GetPayload(), &a); err != nil {
		return nil, fmt.Errorf("assignment: %w", err)
	}
	if a.GetCluster() != k.cluster || a.GetAgentId() != agentID {
		return nil, errors.New("assignment: for another agent or cluster")
	}
	if k.now().After(a.GetNotAfter().AsTime()) {
		return nil, fmt.Errorf("assignment: ended at %s", a.GetNotAfter().AsTime().Format(time.RFC3339))
	}
	return &a, nil
}

// ResourcesOf decodes an assignment.
func ResourcesOf(a *sallyportv1.Assignment) []sallyport.Resource {
	out := make([]sallyport.Resource, 0, len(a.GetResources()))
	for _, r := range a.GetResources() {
		out = append(out, ResourceFromWire(r))
	}
	return out
}

// ResourceToWire and ResourceFromWire convert between the words and the schema.
func ResourceToWire(r sallyport.Resource) *sallyportv1.Resource {
	return &sallyportv1.Resource{
		Kind: string(r.Kind), Name: r.Name, Id: r.ID, Description: r.Description, Protocol: r.Protocol,
		Address: r.Address, Hostname: r.Hostname, Labels: r.Labels, AgentId: r.AgentID, Group: r.Group, Version: r.Version,
	}
}

// ResourceFromWire is the way back.
func ResourceFromWire(r *sallyportv1.Resource) sallyport.Resource {
	return sallyport.Resource{
		Kind: sallyport.Kind(r.GetKind()), Name: r.GetName(), ID: r.GetId(), Description: r.GetDescription(), Protocol: r.GetProtocol(),
		Address: r.GetAddress(), Hostname: r.GetHostname(), Labels: r.GetLabels(), AgentID: r.GetAgentId(), Group: r.GetGroup(), Version: r.GetVersion(),
	}
}
