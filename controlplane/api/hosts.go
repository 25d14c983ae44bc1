package api

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/google/uuid"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/controlplane/audit"
	"github.com/sallyport/sallyport/controlplane/ca"
	"github.com/sallyport/sallyport/controlplane/ca/signed"
	"github.com/sallyport/sallyport/controlplane/inventory"
	"github.com/sallyport/sallyport/controlplane/join"
	"github.com/sallyport/sallyport/identity"
	sallyportv1 "github.com/sallyport/sallyport/wire/sallyport/v1"
)

const (
	maxAddresses = 16
	maxHostName  = 253
)

// joinService lets hosts in.
type joinService struct{ *Server }

// Join takes a token and two public keys and gives certificates.
func (s joinService) Join(ctx context.Context, req *connect.Request[sallyportv1.JoinRequest]) (*connect.Response[sallyportv1.JoinResponse], error) {
	m := req.Msg
	kind, err := hostKind(m.GetRoles())
	if err != nil {
		return nil, err
	}
	resp, token, err := s.join(ctx, kind, m)
	c := callerOf(ctx)
	e := sallyport.Event{Name: audit.InstanceJoin, Code: audit.InstanceJoinCode, User: string(kind), UserKind: string(kind),
		Fields: map[string]any{"method": "token", "role": string(kind), "node_name": m.GetHostName()[:min(len(m.GetHostName()), maxHostName)]}}
	joined := err == nil
	e.Success = &joined
	if err != nil {
		e.Code = audit.InstanceJoinFailureCode
		return nil, errors.Join(err, s.emitAttempt(ctx, c, sourceOf(c.Addr.Addr()), e, err))
	}
	e.User += ":" + resp.GetHostId()
	e.Fields["token"], e.Fields["token_name"], e.Fields["host_id"] = token, token, resp.GetHostId()
	// Unrecorded, the host gets no certificates; it may repeat the call, also by
	// a token for one use, which is bound to its key now.
	if err := s.emit(ctx, c, e); err != nil {
		return nil, err
	}
	s.cfg.Log.Info("host joined", "kind", kind, "id", resp.GetHostId(), "host", m.GetHostName())
	return connect.NewResponse(resp), nil
}

func hostKind(roles []string) (sallyport.IdentityKind, error) {
	if len(roles) == 1 {
		switch k := sallyport.IdentityKind(roles[0]); k {
		case sallyport.KindAgent, sallyport.KindGateway:
			return k, nil
		}
	}
	return "", invalid("a host joins as agent or as gateway")
}

// join returns the answer and the name of the token that was used.
func (s joinService) join(ctx context.Context, kind sallyport.IdentityKind, m *sallyportv1.JoinRequest) (*sallyportv1.JoinResponse, string, error) {
	// All that can be wrong is checked before the token is used up.
	for _, fault := range []error{keyFault(ca.ParseTLSKey(m.GetTlsPublicKey())), keyFault(ca.ParseSSHKey(m.GetSshPublicKey())),
		addressFault(kind, m.GetAddresses()), nameFault(m.GetHostName())} {
		if fault != nil {
			return nil, "", fault
		}
	}
	grant, err := s.cfg.Tokens.Consume(ctx, join.Use{Secret: m.GetToken(), Kind: kind, HostID: m.GetHostId(), Key: m.GetTlsPublicKey()})
	if err != nil {
		return nil, "", err
	}
	h, err := s.cfg.Inventory.Join(ctx, inventory.Host{
		ID: grant.HostID, Kind: kind, Name: m.GetHostName(), Addresses: hostPorts(m.GetAddresses()), Token: grant.Token,
		Allow: inventory.Allow{Kinds: grant.Allow.Kinds, Names: grant.Allow.Names, Labels: grant.Allow.Labels},
	}, m.GetTlsPublicKey())
	if err != nil {
		return nil, "", err
	}
	resp, err := s.certify(h, m.GetTlsPublicKey(), m.GetSshPublicKey(), m.GetAddresses())
	return resp, grant.Token, err
}

func nameFault(name string) error {
	if !text(name, maxHostName) {
		return invalid("the host name is too long or not printable")
	}
	return nil
}

func addressFault(kind sallyport.IdentityKind, list []string) error {
	if kind != sallyport.KindGateway && len(list) > 0 {
		return invalid("only gateways have public addresses")
	}
	_, err := ipAddresses(list)
	return err
}

// hostPorts keeps those that have a port: where a gateway is reached.
func hostPorts(list []string) []string {
	var out []string
	for _, s := range list {
		if _, _, err := net.SplitHostPort(s); err == nil {
			out = append(out, s)
		}
	}
	return out
}

// certify issues a host's certificates for the keys it showed.
func (s *Server) certify(h inventory.Host, tlsKey, sshKey []byte, public []string) (*sallyportv1.JoinResponse, error) {
	addrs, err := ipAddresses(public)
	if err != nil {
		return nil, err
	}
	certs, err := s.cfg.CA.IssueHost(ca.HostRequest{Kind: h.Kind, ID: h.ID, TLSKey: tlsKey, SSHKey: sshKey, Addresses: addrs})
	if err != nil {
		return nil, err
	}
	return &sallyportv1.JoinResponse{
		HostId: h.ID, Cluster: s.cfg.CA.Cluster(), TlsCertificate: certs.X509, SshCertificate: certs.SSH,
		Authorities: authorities(s.cfg.CA), Expires: timestamppb.New(certs.NotAfter),
	}, nil
}

// ipAddresses keeps those that are addresses: names in a gateway's certificate
// are the cluster's alone.
func ipAddresses(list []string) ([]netip.Addr, error) {
	if len(list) > maxAddresses {
		return nil, invalid(fmt.Sprintf("%d public addresses, at most %d", len(list), maxAddresses))
	}
	var out []netip.Addr
	for _, s := range list {
		if !text(s, maxHostName+len(":65535")) {
			return nil, invalid("a public address is too long or not printable")
		}
		if host, _, err := net.SplitHostPort(s); err == nil {
			s = host
		}
		if a, err := netip.ParseAddr(s); err == nil && !a.IsUnspecified() && !slices.Contains(out, a) {
			out = append(out, a.WithZone(""))
		}
	}
	return out, nil
}

// hostService is for agents and gateways that have joined.
type hostService struct{ *Server }

// host returns the record of the caller. A host that was removed has none, and
// may do nothing more. Locks are asked again for the sake of streams.
func (s hostService) host(ctx context.Context) (inventory.Host, error) {
	c := callerOf(ctx)
	if err := s.unlocked(c.Identity); err != nil {
		return inventory.Host{}, err
	}
	h, err := s.cfg.Inventory.Host(ctx, c.Identity.Name)
	if errors.Is(err, sallyport.ErrNotFound) || err == nil && h.Kind != c.Identity.Kind {
		return h, removedProblem()
	}
	return h, err
}

// endedFor is how long after the end of its certificate a host may renew it: a
// machine that was put away comes back by itself, and a disk that was thrown away
// years ago, with a key on it, is no way into the cluster.
const endedFor = 365 * 24 * time.Hour

// RenewHost issues new certificates to a host that has valid ones, or that comes
// back after their end.
func (s hostService) RenewHost(ctx context.Context, req *connect.Request[sallyportv1.RenewHostRequest]) (*connect.Response[sallyportv1.JoinResponse], error) {
	h, err := s.host(ctx)
	if err != nil {
		return nil, err
	}
	if err := addressFault(h.Kind, req.Msg.GetAddresses()); err != nil {
		return nil, err
	}
	c := callerOf(ctx)
	e := sallyport.Event{Name: audit.CertificateCreate, Code: audit.CertificateCreateCode, Fields: map[string]any{"cert_type": "host", "role": string(h.Kind)}}
	if c.EndedKey != nil {
		if err := s.mayReturn(ctx, c, req.Msg.GetTlsPublicKey()); err != nil {
			if errors.Is(err, sallyport.ErrDenied) {
				s.denied(ctx, c, req.Spec().Procedure, err)
			}
			return nil, err
		}
		e.Fields["ended"] = c.Identity.NotAfter.UTC().Format(time.RFC3339)
	}
	resp, err := s.certify(h, req.Msg.GetTlsPublicKey(), req.Msg.GetSshPublicKey(), req.Msg.GetAddresses())
	if err != nil {
		return nil, err
	}
	leaf, err := x509.ParseCertificate(resp.GetTlsCertificate())
	if err != nil {
		return nil, err
	}
	e.Fields["serial"] = leaf.SerialNumber.Text(16)
	if err := s.emit(ctx, c, e); err != nil {
		return nil, err
	}
	return connect.NewResponse(resp), nil
}

// mayReturn says why a host whose certificate has ended gets no new one for the
// public key that it asks for. The host's record is its right to one, which a lock
// suspends and a removal ends; what proves who it is, is the key with which it
// joined, and it gets a certificate for no other.
func (s hostService) mayReturn(ctx context.Context, c Caller, tlsKey []byte) error {
	if s.cfg.Now().Sub(c.Identity.NotAfter) > endedFor {
		return cannotReturn(fmt.Sprintf("this host's certificate ended at %s, more than a year ago", c.Identity.NotAfter.UTC().Format(time.RFC3339)))
	}
	joined, err := s.cfg.Inventory.JoinedWith(ctx, c.Identity.Name, c.EndedKey)
	if errors.Is(err, sallyport.ErrNotFound) {
		return removedProblem()
	}
	if err != nil {
		return err
	}
	if !joined || !bytes.Equal(tlsKey, c.EndedKey) {
		return cannotReturn("this host's certificate has ended, and a new one is given only for the key with which it joined")
	}
	return nil
}

func cannotReturn(fact string) error {
	return &sallyport.Problem{Kind: sallyport.ErrDenied, Fact: fact, Hint: "join again: with a new token, and an empty data directory"}
}

// Announce decides what an agent may serve, and signs it.
func (s hostService) Announce(ctx context.Context, req *connect.Request[sallyportv1.AnnounceRequest]) (*connect.Response[sallyportv1.AnnounceResponse], error) {
	h, err := s.host(ctx)
	if err != nil {
		return nil, err
	}
	var wanted []sallyport.Resource
	for _, r := range req.Msg.GetResources() {
		wanted = append(wanted, fromWire(r))
	}
	a, err := s.cfg.Inventory.Announce(ctx, h.ID, wanted, func(d inventory.Difference, do func() error) error { return s.assign(ctx, h, d, do) })
	if err != nil {
		return nil, err
	}
	resp := &sallyportv1.AnnounceResponse{}
	for _, r := range a.Refusals {
		resp.Refusals = append(resp.Refusals, &sallyportv1.Refusal{Kind: string(r.Kind), Name: r.Name, Reason: r.Reason})
	}
	if resp.Assignment, err = s.signAssignment(h.ID, a); err != nil {
		return nil, err
	}
	if resp.Certificates, err = s.certifyResources(h.ID, a.Resources, req.Msg.GetTlsPublicKey()); err != nil {
		return nil, err
	}
	if resp.SshCertificate, err = s.cfg.CA.IssueNode(h.ID, req.Msg.GetSshPublicKey(), nodeNames(a.Resources)); err != nil {
		return nil, err
	}
	return connect.NewResponse(resp), nil
}

// namesPerEvent bounds the names in one event: of the longest that is a third of
// audit.MaxEvent.
const namesPerEvent = 256

// assign records what an announcement changes, and changes it.
func (s *Server) assign(ctx context.Context, h inventory.Host, d inventory.Difference, do func() error) error {
	if !s.assigned.take(h.ID, s.cfg.Now()) {
		return &sallyport.Problem{Kind: sallyport.ErrExhausted, Fact: "this agent changes what it announces too often", Hint: "look for names or labels that change all the time"}
	}
	for _, part := range slices.Backward(split(d, namesPerEvent)) { // the first is outermost
		e := sallyport.Event{Name: audit.InstanceAssign, Code: audit.InstanceAssignCode, Fields: map[string]any{"node_name": h.Name}}
		for field, names := range map[string][]string{"new": part.New, "changed": part.Changed, "given_up": part.GivenUp} {
			if len(names) > 0 {
				e.Fields[field] = names
			}
		}
		next := do
		do = func() error { return s.change(ctx, e, next) }
	}
	return do()
}

// split makes parts of so many names at most.
func split(d inventory.Difference, most int) (parts []inventory.Difference) {
	for len(d.New)+len(d.Changed)+len(d.GivenUp) > 0 {
		var p inventory.Difference
		left := most
		for _, move := range []struct{ to, from *[]string }{{&p.New, &d.New}, {&p.Changed, &d.Changed}, {&p.GivenUp, &d.GivenUp}} {
			n := min(left, len(*move.from))
			*move.to, *move.from = (*move.from)[:n], (*move.from)[n:]
			left -= n
		}
		parts = append(parts, p)
	}
	return parts
}

func nodeNames(list []sallyport.Resource) []string {
	var out []string
	for _, r := range list {
		if r.Kind == sallyport.KindNode {
			out = append(out, r.Name)
		}
	}
	return out
}

func (s *Server) signAssignment(id string, a inventory.Assignment) ([]byte, error) {
	m := &sallyportv1.Assignment{
		Cluster: s.cfg.CA.Cluster(), AgentId: id, Revision: a.Revision, PgCancelTag: uint32(a.Tag),
		NotAfter: timestamppb.New(s.cfg.Now().Add(ca.HostTTL)),
	}
	for _, r := range a.Resources {
		m.Resources = append(m.Resources, toWire(r))
	}
	payload, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		return nil, err
	}
	sg, err := s.cfg.CA.Sign(signed.Assignment, payload)
	if err != nil {
		return nil, err
	}
	return proto.Marshal(sg)
}

// certifyResources issues one certificate for each server name; a node has two,
// its name and its UUID.
func (s *Server) certifyResources(id string, list []sallyport.Resource, tlsKey []byte) ([]*sallyportv1.ResourceCertificate, error) {
	var names []string
	for _, r := range list {
		names = append(names, s.cfg.CA.ServerName(r.Kind, r.Name))
		if r.Kind == sallyport.KindNode {
			names = append(names, s.cfg.CA.ServerName(r.Kind, id))
		}
	}
	slices.Sort(names)
	var out []*sallyportv1.ResourceCertificate
	for _, name := range slices.Compact(names) {
		c, err := s.cfg.CA.IssueResource(tlsKey, name)
		if err != nil {
			return nil, err
		}
		out = append(out, &sallyportv1.ResourceCertificate{ServerName: name, Certificate: c.X509})
	}
	return out, nil
}

// IssueDatabaseCertificate is for agents, and only for databases that they serve.
func (s hostService) IssueDatabaseCertificate(ctx context.Context, req *connect.Request[sallyportv1.IssueDatabaseCertificateRequest]) (*connect.Response[sallyportv1.IssueDatabaseCertificateResponse], error) {
	h, err := s.host(ctx)
	if err != nil {
		return nil, err
	}
	if _, err := s.cfg.Inventory.Serves(ctx, h.ID, sallyport.KindDatabase, req.Msg.GetDatabase()); err != nil {
		if errors.Is(err, sallyport.ErrNotFound) {
			err = &sallyport.Problem{Kind: sallyport.ErrDenied, Fact: "this agent does not serve that database"}
		}
		return nil, err
	}
	certs, err := s.cfg.CA.IssueDatabaseClient(req.Msg.GetTlsPublicKey(), req.Msg.GetDatabaseUser())
	if err != nil {
		return nil, err
	}
	err = s.emit(ctx, callerOf(ctx), sallyport.Event{Name: audit.CertificateCreate, Code: audit.CertificateCreateCode,
		Fields: map[string]any{"cert_type": "database", "db_service": req.Msg.GetDatabase(), "db_user": req.Msg.GetDatabaseUser()}})
	if err != nil {
		return nil, err
	}
	resp := &sallyportv1.IssueDatabaseCertificateResponse{Certificate: certs.X509, Expires: timestamppb.New(certs.NotAfter)}
	for _, c := range s.cfg.CA.Authority(ca.Database).Certificates {
		resp.ServerAuthorities = append(resp.ServerAuthorities, c.Raw)
	}
	return connect.NewResponse(resp), nil
}

// IssueAppToken is for agents, for applications that they serve, and about users
// whose certificate they have been shown.
func (s hostService) IssueAppToken(ctx context.Context, req *connect.Request[sallyportv1.IssueAppTokenRequest]) (*connect.Response[sallyportv1.IssueAppTokenResponse], error) {
	h, err := s.host(ctx)
	if err != nil {
		return nil, err
	}
	app := req.Msg.GetApp()
	id, err := s.visitor(req.Msg.GetUserCertificate(), app)
	if err != nil {
		return nil, err
	}
	if _, err := s.cfg.Inventory.Serves(ctx, h.ID, sallyport.KindApp, app); err != nil {
		if errors.Is(err, sallyport.ErrNotFound) {
			err = &sallyport.Problem{Kind: sallyport.ErrDenied, Fact: "this agent does not serve that application"}
		}
		return nil, err
	}
	token, notAfter, err := s.cfg.CA.IssueAppToken(id, app)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&sallyportv1.IssueAppTokenResponse{Token: token, Expires: timestamppb.New(notAfter)}), nil
}

// maxVisitor bounds a user's certificate, in DER.
const maxVisitor = 64 << 10

// visitor is who a certificate names, if it is a good one of a user and may be
// used for the application.
func (s hostService) visitor(der []byte, app string) (sallyport.Identity, error) {
	bad := &sallyport.Problem{Kind: sallyport.ErrInvalid, Fact: "that is no good certificate of a user"}
	if len(der) > maxVisitor {
		return sallyport.Identity{}, bad
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return sallyport.Identity{}, bad
	}
	id, err := identity.VerifyPeer([]*x509.Certificate{leaf}, identity.Want{
		Roots: s.cfg.CA.Pool(ca.User), Cluster: s.cfg.CA.Cluster(), Kinds: []sallyport.IdentityKind{sallyport.KindUser},
		Usage: x509.ExtKeyUsageClientAuth, Now: s.cfg.Now(),
	})
	if err != nil {
		return sallyport.Identity{}, bad
	}
	if list := id.AllowedResources; len(list) > 0 && !slices.Contains(list, "/"+id.Cluster+"/"+string(sallyport.KindApp)+"/"+app) {
		return sallyport.Identity{}, sallyport.Denied("the certificate was issued for other resources", "")
	}
	return id, s.unlocked(id)
}

// WatchSnapshot sends the newest snapshot at once and each newer one. The
// stream ends when the host is locked or removed, or by Drain. The snapshot that
// says so is its last: an agent that is told ends its sessions.
func (s hostService) WatchSnapshot(ctx context.Context, req *connect.Request[sallyportv1.WatchSnapshotRequest], stream *connect.ServerStream[sallyportv1.Signed]) error {
	if err := s.state.atLeast(ctx, req.Msg.GetHaveRevision()); err != nil {
		return err
	}
	for first := true; ; first = false {
		next := s.state.next()
		_, fallen := s.host(ctx)
		if fallen != nil && (first || !errors.Is(fallen, sallyport.ErrDenied)) {
			return fallen
		}
		if fallen != nil && s.unlocked(callerOf(ctx).Identity) == nil {
			// The store is ahead of the view, which does not say so yet.
			if err := s.state.reload(ctx, false); err != nil {
				return err
			}
		}
		if err := stream.Send(s.state.view().signed); err != nil {
			return err
		}
		if fallen != nil {
			return fallen
		}
		select {
		case <-ctx.Done():
			return nil
		case <-s.drained:
			return drain()
		case <-next:
		}
	}
}

// AppendEvents makes a batch of a host's spool durable.
func (s hostService) AppendEvents(ctx context.Context, req *connect.Request[sallyportv1.AppendEventsRequest]) (*connect.Response[sallyportv1.AppendEventsResponse], error) {
	h, err := s.host(ctx)
	if err != nil {
		return nil, err
	}
	if !ownSpool(h.ID, req.Msg.GetSpool()) {
		return nil, &sallyport.Problem{Kind: sallyport.ErrDenied, Fact: "that spool is another host's"}
	}
	records := make([]audit.Record, 0, len(req.Msg.GetEvents()))
	for _, e := range req.Msg.GetEvents() {
		records = append(records, audit.Record{Sequence: e.GetSequence(), JSON: ownEvent(h.ID, e.GetJson())})
	}
	acknowledged, err := s.cfg.Audit.Append(ctx, req.Msg.GetSpool(), records)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&sallyportv1.AppendEventsResponse{Acknowledged: acknowledged}), nil
}

// ownEvent holds a host to its own name: an event that says it is of another
// server keeps that word apart. The same line always gives the same, so a
// batch may be repeated.
func ownEvent(host string, line []byte) []byte {
	if len(line) > 2*audit.MaxEvent {
		return line // refused by the log
	}
	e, err := audit.Decode(line)
	if err != nil || e.ServerID == host {
		return line
	}
	if e.Fields == nil {
		e.Fields = map[string]any{}
	}
	e.Fields["claimed_server_id"], e.ServerID = e.ServerID, host
	return audit.Encode(e)
}

// ownSpool holds hosts to spools that begin with their own id and have a UUID.
func ownSpool(host, spool string) bool {
	rest, ok := strings.CutPrefix(spool, host+"/")
	id, err := uuid.Parse(rest)
	return ok && err == nil && id.String() == rest
}

// ReportPresence takes a gateway's view of which agents are there.
func (s hostService) ReportPresence(ctx context.Context, req *connect.Request[sallyportv1.ReportPresenceRequest]) (*connect.Response[sallyportv1.ReportPresenceResponse], error) {
	h, err := s.host(ctx)
	if err != nil {
		return nil, err
	}
	m := req.Msg
	if m.GetGatewayId() != h.ID {
		return nil, &sallyport.Problem{Kind: sallyport.ErrDenied, Fact: "that is another gateway's presence"}
	}
	r := inventory.Report{Gateway: h.ID, Address: m.GetAddress(), Epoch: m.GetEpoch(), Sequence: m.GetSequence(), Full: m.GetFull(), Down: m.GetDown()}
	for _, p := range m.GetUp() {
		r.Up = append(r.Up, inventory.Up{AgentID: p.GetAgentId(), Version: p.GetVersion()})
	}
	needFull, err := s.cfg.Inventory.Report(ctx, r)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&sallyportv1.ReportPresenceResponse{NeedFull: needFull}), nil
}

func toWire(r sallyport.Resource) *sallyportv1.Resource {
	return &sallyportv1.Resource{
		Kind: string(r.Kind), Name: r.Name, Id: r.ID, Description: r.Description, Protocol: r.Protocol,
		Address: r.Address, Hostname: r.Hostname, Labels: r.Labels, AgentId: r.AgentID, Group: r.Group, Version: r.Version,
	}
}

func fromWire(r *sallyportv1.Resource) sallyport.Resource {
	return sallyport.Resource{
		Kind: sallyport.Kind(r.GetKind()), Name: r.GetName(), ID: r.GetId(), Description: r.GetDescription(), Protocol: r.GetProtocol(),
		Address: r.GetAddress(), Hostname: r.GetHostname(), Labels: r.GetLabels(), AgentID: r.GetAgentId(), Group: r.GetGroup(), Version: r.GetVersion(),
	}
}
