package client

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	mathrand "math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/crypto/ssh"
	"golang.org/x/sync/errgroup"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/identity"
	sallyportv1 "github.com/sallyport/sallyport/wire/sallyport/v1"
	"github.com/sallyport/sallyport/wire/sallyport/v1/sallyportv1connect"
)

const (
	hostFile = "host.json"
	keysFile = "joining.json" // keys of a join that has not been answered

	callTimeout = time.Minute // of one call to auth; Announce of many resources is the longest

	// lookEvery is how often it is looked at the clock whether to renew: a timer
	// stands still while its machine sleeps. It is also the pause between two
	// renewals, for a host whose clock is days ahead of auth's.
	lookEvery = time.Minute

	// warnEvery is how often a host whose certificate has ended says that it is
	// not renewed, and how often at most that it is refused for one more reason.
	warnEvery = time.Minute
)

// HostConfig says what a host is and how it reaches auth.
type HostConfig struct {
	Dir       string                 // its own directory, made 0700
	Kind      sallyport.IdentityKind // KindAgent or KindGateway
	Name      string                 // the machine's host name
	Addresses func() []string        // ways to auth, see Dialer
	Resources []sallyport.Resource   // agents: what to announce, until SetResources
	Public    []string               // gateways: public names and addresses, host or host:port
	Log       *slog.Logger

	// Connect makes connections to Addresses that are no sockets of this machine;
	// see Dialer. nil: net.Dialer.
	Connect func(ctx context.Context, network, addr string) (net.Conn, error)

	// Inside makes them where something on the way ends TLS; see Dialer.
	Inside func(ctx context.Context, addr string, own func(chain []*x509.Certificate) bool) (net.Conn, error)

	// Held says that an old process still writes to Dir: see Take.
	Held bool
}

// Host is one agent's or gateway's standing with auth: its keys, certificates,
// snapshot and, for agents, what it may serve. All methods may be called concurrently.
type Host struct {
	cfg    HostConfig
	dialer *Dialer
	keeper *Keeper
	http   *http.Client // to auth
	api    sallyportv1connect.HostServiceClient

	mu       sync.Mutex
	keys     keys
	standing standing
	served   served
	changed  chan struct{}        // closed at each change of served
	serves   []sallyport.Resource // what to announce
	again    time.Time            // of the last AnnounceAgain that did something

	announced chan struct{} // what to announce has changed

	files    keeping
	left     chan struct{} // closed by Leave
	leave    sync.Once
	database databaseCertificates
	tokens   appTokens
}

// keys are made once, before joining, and never leave the directory.
type keys struct {
	tls *ecdsa.PrivateKey
	ssh ed25519.PrivateKey
}

// standing is what auth said at the last join or renewal; JSON on disk.
type standing struct {
	ID             string   `json:"id"`
	Cluster        string   `json:"cluster"`
	TLSKey         []byte   `json:"tls_key"` // PKCS#8
	SSHKey         []byte   `json:"ssh_key"` // PKCS#8
	Certificate    []byte   `json:"certificate"`
	SSHCertificate string   `json:"ssh_certificate"`
	HostCAs        [][]byte `json:"host_cas"`
}

// ErrNotJoined says that a host has no standing yet: Join first.
var ErrNotJoined = errors.New("this host has not joined a cluster")

// OpenHost loads a host that has joined before. The error is ErrNotJoined when
// there is nothing in the directory.
func OpenHost(cfg HostConfig) (*Host, error) {
	var s standing
	path := filepath.Join(cfg.Dir, hostFile)
	found, err := readJSON(path, &s)
	if errors.Is(err, errDamaged) {
		return nil, damaged(path, err)
	}
	if err != nil {
		return nil, err
	}
	if !found {
		return nil, ErrNotJoined
	}
	k, err := s.keys()
	if err == nil {
		err = s.check(cfg.Kind, k)
	}
	if err != nil {
		return nil, damaged(path, fmt.Errorf("%s: %w", path, err))
	}
	return newHost(cfg, k, s)
}

// damaged says what to do about a standing that is not good.
func damaged(path string, cause error) *sallyport.Problem {
	return &sallyport.Problem{Kind: sallyport.ErrInvalid, Fact: cause.Error(), Cause: cause,
		Hint: "put a copy of it there; or move it away and join again, with a new token (sallyctl tokens add)"}
}

// Join makes keys, joins by token, and stores the standing. pins say which CA
// to expect; see Dialer.Pins. The keys are on disk first: a token for one use is
// bound to them, so a join whose answer was lost can be repeated.
func Join(ctx context.Context, cfg HostConfig, token string, pins []string) (*Host, error) {
	k, err := joiningKeys(cfg.Dir)
	if err != nil {
		return nil, err
	}
	req, err := joinRequest(cfg, k, token)
	if err != nil {
		return nil, err
	}
	d := &Dialer{Addresses: cfg.Addresses, Pins: pins, Connect: cfg.Connect, Inside: cfg.Inside}
	hc := d.HTTP(ProtocolJoin)
	defer hc.CloseIdleConnections()
	resp, err := sallyportv1connect.NewJoinServiceClient(hc, BaseURL, connect.WithReadMaxBytes(maxFile)).Join(ctx, connect.NewRequest(req))
	if err != nil {
		return nil, problem(err)
	}
	s, err := standingOf(resp.Msg, cfg.Kind, k)
	if err != nil {
		return nil, err
	}
	if err := pinned(s.HostCAs, pins); err != nil {
		return nil, err
	}
	if err := writeJSON(filepath.Join(cfg.Dir, hostFile), s); err != nil {
		return nil, err
	}
	if err := os.Remove(filepath.Join(cfg.Dir, keysFile)); err != nil {
		return nil, err
	}
	return newHost(cfg, k, s)
}

// joiningKeys are those of the last try, or new ones.
func joiningKeys(dir string) (keys, error) {
	path := filepath.Join(dir, keysFile)
	var s standing
	found, err := readJSON(path, &s)
	if err != nil {
		return keys{}, err
	}
	if found {
		k, err := s.keys()
		if err != nil {
			return keys{}, fmt.Errorf("%s: %w", path, err)
		}
		return k, nil
	}
	k, err := newKeys()
	if err != nil {
		return keys{}, err
	}
	if s, err = k.standing(); err != nil {
		return keys{}, err
	}
	return k, writeJSON(path, s)
}

func joinRequest(cfg HostConfig, k keys, token string) (*sallyportv1.JoinRequest, error) {
	tlsPub, sshPub, err := k.public()
	if err != nil {
		return nil, err
	}
	return &sallyportv1.JoinRequest{
		Token: token, HostName: cfg.Name, Roles: []string{string(cfg.Kind)},
		TlsPublicKey: tlsPub, SshPublicKey: sshPub, Addresses: cfg.Public,
	}, nil
}

// pinned refuses an answer whose host CA is not the one that was asked for.
func pinned(cas [][]byte, pins []string) error {
	certs, err := parseCertificates(cas)
	if err != nil {
		return err
	}
	if _, err := identity.PinnedRoots(certs, pins); err != nil {
		return fmt.Errorf("auth's answer: %w", err)
	}
	return nil
}

func newHost(cfg HostConfig, k keys, s standing) (*Host, error) {
	cas, err := parseCertificates(s.HostCAs)
	if err != nil {
		return nil, err
	}
	h := &Host{cfg: cfg, keys: k, standing: s, changed: make(chan struct{}), serves: cfg.Resources, announced: make(chan struct{}, 1), left: make(chan struct{})}
	if cfg.Held {
		h.files.state = keepHeld
	}
	keeper, err := newKeeper(cfg.Dir, s.Cluster, cas, keeperUses{cfg.Log, &h.files})
	if err != nil {
		return nil, err
	}
	h.keeper = keeper
	h.dialer = h.dialerWith(h.goodCertificate)
	h.http = h.dialer.HTTP(ProtocolAuth)
	h.api = sallyportv1connect.NewHostServiceClient(h.http, BaseURL, connect.WithReadMaxBytes(maxSnapshot))
	if err := h.database.open(h); err != nil {
		return nil, err
	}
	if err := h.loadServed(); err != nil {
		return nil, err
	}
	return h, nil
}

// dialerWith is a way to auth on which a certificate is shown.
func (h *Host) dialerWith(certificate func() (*tls.Certificate, error)) *Dialer {
	return &Dialer{Addresses: h.ways, Cluster: h.Cluster(), Roots: h.keeper.Roots, Certificate: certificate, Connect: h.cfg.Connect, Inside: h.cfg.Inside}
}

// othersMost is how many gateways that are not configured an agent tries in turn.
const othersMost = 8

// ways are the addresses of auth. An agent that goes by gateways goes by others of the
// cluster, too, when those that it was told do not lead there: else it would hear of no
// lock while one gateway is away, beside others to which it has tunnels.
func (h *Host) ways() []string {
	own := h.cfg.Addresses()
	if h.cfg.Kind != sallyport.KindAgent || slices.ContainsFunc(own, func(a string) bool { return strings.HasPrefix(a, "unix:") }) {
		return own
	}
	others := slices.DeleteFunc(slices.Clone(h.keeper.Gateways()), func(a string) bool { return slices.Contains(own, a) })
	mathrand.Shuffle(len(others), func(i, j int) { others[i], others[j] = others[j], others[i] }) // agents do not all go to one
	return append(slices.Clip(own), others[:min(len(others), othersMost)]...)
}

// Run keeps the standing fresh until ctx is done: snapshots, renewals, and for
// agents announcements and database certificates. It never gives up. A host whose
// certificate has ended, which was off for long, renews it before all else. After
// Leave it keeps up with snapshots, and with what the new process renews.
func (h *Host) Run(ctx context.Context) error {
	defer h.http.CloseIdleConnections()
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return h.watchSnapshots(ctx) })
	g.Go(func() error { return h.readRenewed(ctx) })
	here, stop := context.WithCancel(ctx)
	g.Go(func() error {
		defer stop()
		select {
		case <-h.left:
		case <-ctx.Done():
		}
		return nil
	})
	g.Go(func() error { return h.renew(here) })
	if h.cfg.Kind == sallyport.KindAgent {
		g.Go(func() error { return h.announce(here) })
		g.Go(func() error { return h.database.keep(here) })
	}
	return g.Wait()
}

// watchSnapshots holds one stream; a broken one is opened again.
func (h *Host) watchSnapshots(ctx context.Context) error {
	return retrying(ctx, h.cfg.Log, "watch snapshots", func(ctx context.Context, progress func()) error {
		if err := h.untilGood(ctx); err != nil {
			return err
		}
		stream, err := h.api.WatchSnapshot(ctx, connect.NewRequest(&sallyportv1.WatchSnapshotRequest{HaveRevision: h.keeper.Revision()}))
		if err != nil {
			return problem(err)
		}
		defer stream.Close()
		for stream.Receive() {
			if err := h.keeper.Take(stream.Msg()); err != nil {
				return err
			}
			progress()
		}
		return problem(stream.Err())
	})
}

// renew asks for a new certificate when half of the old one's life is over, and
// once at the start when the old one lacks what auth gives today. As long as one
// that has ended is not renewed it says so again and again.
func (h *Host) renew(ctx context.Context) error {
	lacking := h.lacksName()
	if h.ended() {
		h.cfg.Log.Info("the host certificate has ended; asking auth for a new one", "ended", h.leaf().NotAfter)
	}
	var warned time.Time
	return retrying(ctx, h.cfg.Log, "renew the host certificate", func(ctx context.Context, progress func()) error {
		for {
			if !lacking {
				if err := h.untilDue(ctx); err != nil {
					return err
				}
			}
			if err := h.renewOnce(ctx); err != nil {
				if h.ended() && ctx.Err() == nil && time.Since(warned) >= warnEvery {
					warned = time.Now()
					h.warnEnded(err)
				}
				return err
			}
			lacking = false
			progress()
			if err := sleepUntil(ctx, time.Now().Add(lookEvery)); err != nil {
				return err
			}
		}
	})
}

// untilDue waits until it is time to renew.
func (h *Host) untilDue(ctx context.Context) error {
	for {
		now, at := time.Now(), h.renewAt()
		if !now.Before(at) {
			return nil
		}
		if limit := now.Add(lookEvery); at.After(limit) {
			at = limit
		}
		if err := sleepUntil(ctx, at); err != nil {
			return err
		}
	}
}

// warnEnded says that the host is out of the cluster, and what to do about it.
func (h *Host) warnEnded(cause error) {
	hint := "auth must be reachable, and of a version that renews certificates which have ended; or join again: with a new token, and " + h.cfg.Dir + " moved away"
	var p *sallyport.Problem
	if errors.As(cause, &p) && errors.Is(cause, sallyport.ErrDenied) && p.Hint != "" {
		hint = p.Hint
	}
	h.cfg.Log.Warn("the host certificate has ended and is not renewed: until it is, this host is out of the cluster",
		"kind", h.cfg.Kind, "ended", h.leaf().NotAfter, "error", cause, "hint", hint)
}

// ended says that the certificate has ended, by this machine's clock.
func (h *Host) ended() bool { return !time.Now().Before(h.leaf().NotAfter) }

// untilGood waits while the certificate has ended: for its renewal, or for a clock
// that is put right. The error is ctx's.
func (h *Host) untilGood(ctx context.Context) error {
	for h.ended() {
		if err := sleepUntil(ctx, time.Now().Add(retryFirst)); err != nil {
			return err
		}
	}
	return nil
}

// goodCertificate is Certificate for all calls but the renewal: auth takes one that
// has ended for nothing else, and would go on so on a connection that was kept.
func (h *Host) goodCertificate() (*tls.Certificate, error) {
	c, err := h.Certificate()
	if err == nil && !time.Now().Before(c.Leaf.NotAfter) {
		return nil, &sallyport.Problem{Kind: sallyport.ErrUnavailable, Fact: "this host's certificate has ended, and auth has not renewed it yet"}
	}
	return c, err
}

// lacksName says that this is a gateway whose SSH certificate does not name the
// cluster: one of a version that had no jump server.
func (h *Host) lacksName() bool {
	if h.cfg.Kind != sallyport.KindGateway {
		return false
	}
	signer, err := h.SSHSigner()
	if err != nil {
		return true
	}
	cert, ok := signer.PublicKey().(*ssh.Certificate)
	return !ok || !slices.Contains(cert.ValidPrincipals, h.Cluster())
}

func (h *Host) renewAt() time.Time {
	leaf := h.leaf()
	return leaf.NotBefore.Add(leaf.NotAfter.Sub(leaf.NotBefore) / 2)
}

func (h *Host) renewOnce(ctx context.Context) error {
	tlsPub, sshPub, err := h.keys.public()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	hc := h.dialerWith(h.Certificate).HTTP(ProtocolAuth)
	defer hc.CloseIdleConnections()
	resp, err := sallyportv1connect.NewHostServiceClient(hc, BaseURL, connect.WithReadMaxBytes(maxFile)).RenewHost(ctx, connect.NewRequest(&sallyportv1.RenewHostRequest{
		TlsPublicKey: tlsPub, SshPublicKey: sshPub, Addresses: h.cfg.Public}))
	if err != nil {
		return problem(err)
	}
	s, err := standingOf(resp.Msg, h.cfg.Kind, h.keys)
	if err != nil {
		return err
	}
	h.mu.Lock()
	same := s.ID == h.standing.ID && s.Cluster == h.standing.Cluster
	h.mu.Unlock()
	if !same {
		return errors.New("auth renewed another host's certificate")
	}
	if err := h.files.writeJSON(filepath.Join(h.cfg.Dir, hostFile), s); err != nil {
		return err
	}
	h.mu.Lock()
	h.standing = s
	h.mu.Unlock()
	h.http.CloseIdleConnections() // they are known by the old one
	h.cfg.Log.Info("host certificate renewed", "until", h.leaf().NotAfter)
	return nil
}

// ID is the host's UUID.
func (h *Host) ID() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.standing.ID
}

// Cluster is the cluster's public name.
func (h *Host) Cluster() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.standing.Cluster
}

// Keeper is the host's snapshot.
func (h *Host) Keeper() *Keeper { return h.keeper }

// API is the connection to auth, for the shipper and presence.
func (h *Host) API() sallyportv1connect.HostServiceClient { return h.api }

// Dialer is the host's way to auth, with its own certificate while that is good.
func (h *Host) Dialer() *Dialer { return h.dialer }

// Certificate is the host's own, for client and server use, with its CA behind
// it so that a pin can be checked.
func (h *Host) Certificate() (*tls.Certificate, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	leaf, err := x509.ParseCertificate(h.standing.Certificate)
	if err != nil {
		return nil, err
	}
	return &tls.Certificate{
		Certificate: append([][]byte{h.standing.Certificate}, h.standing.HostCAs...),
		PrivateKey:  h.keys.tls,
		Leaf:        leaf,
	}, nil
}

func (h *Host) leaf() *x509.Certificate {
	cert, err := h.Certificate()
	if err != nil {
		return &x509.Certificate{} // standingOf parsed it: not reached
	}
	return cert.Leaf
}

// SSHSigner is the host's SSH key with its host certificate.
func (h *Host) SSHSigner() (ssh.Signer, error) {
	h.mu.Lock()
	line, key := h.standing.SSHCertificate, h.keys.ssh
	if h.served.SSHCertificate != "" {
		line = h.served.SSHCertificate
	}
	h.mu.Unlock()
	signer, err := ssh.NewSignerFromKey(key)
	if err != nil {
		return nil, err
	}
	pub, _, _, _, err := ssh.ParseAuthorizedKey([]byte(line))
	if err != nil {
		return nil, fmt.Errorf("ssh host certificate: %w", err)
	}
	cert, ok := pub.(*ssh.Certificate)
	if !ok {
		return nil, errors.New("ssh host certificate: a plain key")
	}
	return ssh.NewCertSigner(cert, signer)
}

func newKeys() (keys, error) {
	t, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return keys{}, err
	}
	_, s, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return keys{}, err
	}
	return keys{tls: t, ssh: s}, nil
}

// public returns the PKIX DER of the TLS key and the authorized_keys line of the SSH key.
func (k keys) public() (tlsPub, sshPub []byte, err error) {
	tlsPub, err = x509.MarshalPKIXPublicKey(k.tls.Public())
	if err != nil {
		return nil, nil, err
	}
	pub, err := ssh.NewPublicKey(k.ssh.Public())
	if err != nil {
		return nil, nil, err
	}
	return tlsPub, bytes.TrimSpace(ssh.MarshalAuthorizedKey(pub)), nil
}

func (s standing) keys() (keys, error) {
	t, err := x509.ParsePKCS8PrivateKey(s.TLSKey)
	if err != nil {
		return keys{}, err
	}
	sk, err := x509.ParsePKCS8PrivateKey(s.SSHKey)
	if err != nil {
		return keys{}, err
	}
	tk, ok := t.(*ecdsa.PrivateKey)
	ek, ok2 := sk.(ed25519.PrivateKey)
	if !ok || !ok2 {
		return keys{}, errors.New("keys of an unknown kind")
	}
	return keys{tls: tk, ssh: ek}, nil
}

// standing holds the keys and nothing else yet.
func (k keys) standing() (s standing, err error) {
	if s.TLSKey, err = x509.MarshalPKCS8PrivateKey(k.tls); err != nil {
		return standing{}, err
	}
	s.SSHKey, err = x509.MarshalPKCS8PrivateKey(k.ssh)
	return s, err
}

// standingOf checks auth's answer against what was asked for before it is
// believed.
func standingOf(m *sallyportv1.JoinResponse, kind sallyport.IdentityKind, k keys) (standing, error) {
	s, err := k.standing()
	if err != nil {
		return standing{}, err
	}
	s.ID, s.Cluster, s.Certificate, s.SSHCertificate = m.GetHostId(), m.GetCluster(), m.GetTlsCertificate(), string(m.GetSshCertificate())
	for _, a := range m.GetAuthorities() {
		if a.GetKind() == "host" {
			s.HostCAs = a.GetCertificates()
		}
	}
	if err := s.check(kind, k); err != nil {
		return standing{}, fmt.Errorf("auth's answer: %w", err)
	}
	return s, nil
}

// check demands a certificate for these keys that names this very host.
func (s standing) check(kind sallyport.IdentityKind, k keys) error {
	leaf, err := k.leaf(s.Certificate)
	if err != nil {
		return err
	}
	cas, err := parseCertificates(s.HostCAs)
	if err != nil {
		return err
	}
	id, err := identity.VerifyPeer([]*x509.Certificate{leaf}, identity.Want{
		Roots: Pool(cas), Cluster: s.Cluster, Kinds: []sallyport.IdentityKind{kind}, Usage: x509.ExtKeyUsageClientAuth,
		Now: leaf.NotAfter, // whether it has ended is no matter here
	})
	if err != nil {
		return err
	}
	if s.Cluster == "" || id.Name != s.ID {
		return fmt.Errorf("the certificate is for host %q of cluster %q, not for %q of %q", id.Name, id.Cluster, s.ID, s.Cluster)
	}
	return nil
}

// leaf parses a certificate and demands that it is for the host's TLS key.
func (k keys) leaf(der []byte) (*x509.Certificate, error) {
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	if pub, ok := leaf.PublicKey.(*ecdsa.PublicKey); !ok || !pub.Equal(k.tls.Public()) {
		return nil, errors.New("the certificate is for another key")
	}
	return leaf, nil
}

// PEM encodes certificates, one block each.
func PEM(certs []*x509.Certificate) []byte {
	var out []byte
	for _, c := range certs {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	return out
}
