package client

import (
	"crypto/x509"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/controlplane/ca/signed"
	"github.com/sallyport/sallyport/controlplane/rbac"
	sallyportv1 "github.com/sallyport/sallyport/wire/sallyport/v1"
)

const (
	// DefaultOfflineMaxAge is how long decisions go on without contact to auth.
	DefaultOfflineMaxAge = 12 * time.Hour
	// StrictMaxAge holds where locks are strict.
	StrictMaxAge = 5 * time.Minute

	snapshotFile = "snapshot.pb"

	// maxSnapshot bounds what is read of a file or of an answer.
	maxSnapshot = signed.MaxPayload + 4<<10

	// maxOfflineSeconds keeps a setting that is not meant from overflowing.
	maxOfflineSeconds = 10 * 365 * 24 * 3600
)

// Keeper holds the newest verified snapshot. It meets access.Snapshot and
// access.Decider. All methods may be called concurrently.
type Keeper struct {
	dir     string
	cluster string
	log     *slog.Logger
	now     func() time.Time
	files   *keeping

	taking sync.Mutex // held while one snapshot is taken, its writing included

	mu      sync.Mutex
	view    *view         // nil before the first
	refusal error         // why the last one that auth sent was not taken
	changed chan struct{} // closed and replaced at each change
	signers []*x509.Certificate
}

// view is one snapshot, decoded. It is never changed.
type view struct {
	// trust.IssuedAt is when auth was last heard: the time of issue, or that
	// of arrival when auth's clock is ahead of ours.
	trust    sallyport.Trust
	issued   time.Time
	notAfter time.Time
	policy   *rbac.Policy
	gateways []string
	removed  []string
	maxAge   time.Duration
}

// NewKeeper opens the keeper of a host's directory. signers are the host CAs
// known from joining; later ones come from verified snapshots. A snapshot on
// disk is taken when it still verifies.
func NewKeeper(dir, cluster string, signers []*x509.Certificate, log *slog.Logger) (*Keeper, error) {
	return newKeeper(dir, cluster, signers, keeperUses{log, new(keeping)})
}

// keeperUses is what a host's keeper shares with the host.
type keeperUses struct {
	log   *slog.Logger
	files *keeping
}

func newKeeper(dir, cluster string, signers []*x509.Certificate, u keeperUses) (*Keeper, error) {
	k := &Keeper{dir: dir, cluster: cluster, signers: signers, log: u.log, files: u.files, now: time.Now, changed: make(chan struct{})}
	return k, k.load()
}

// load takes what is on disk. What does not verify there is not believed and
// not fatal: auth sends another.
func (k *Keeper) load() error {
	path := filepath.Join(k.dir, snapshotFile)
	data, err := readFile(path, maxSnapshot)
	if err != nil || data == nil {
		return err
	}
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	var s sallyportv1.Signed
	if err := proto.Unmarshal(data, &s); err != nil {
		k.log.Warn("snapshot on disk is unreadable; waiting for auth", "error", err)
		return nil
	}
	v, err := k.decode(&s, info.ModTime())
	if err != nil {
		k.log.Warn("snapshot on disk does not verify; waiting for auth", "error", err)
		return nil
	}
	k.taking.Lock()
	defer k.taking.Unlock()
	if old := k.newest(); old != nil && !old.olderThan(v) {
		return nil
	}
	k.set(v)
	k.log.Info("took the snapshot on disk", "revision", v.trust.Revision, "issued", v.issued)
	return nil
}

// Take verifies a snapshot from auth and makes it the newest. A lower revision,
// an older issue of the same one, or another cluster is refused and changes
// nothing. A snapshot that cannot be written counts all the same: a full disk
// does not keep a lock away.
func (k *Keeper) Take(s *sallyportv1.Signed) error {
	k.taking.Lock()
	defer k.taking.Unlock()
	v, err := k.judge(s)
	k.mu.Lock()
	k.refusal = err
	k.mu.Unlock()
	if err != nil {
		return err
	}
	k.set(v)
	data, err := proto.Marshal(s)
	if err == nil {
		path := filepath.Join(k.dir, snapshotFile)
		if err = k.files.write(path, data); err != nil {
			k.files.remember(path, data)
		}
	}
	if err != nil {
		k.log.Error("the snapshot is in force but not on disk: after a restart without auth an older one would be", "error", err)
	}
	return nil
}

// judge verifies a snapshot from auth and compares it with the one held.
func (k *Keeper) judge(s *sallyportv1.Signed) (*view, error) {
	v, err := k.decode(s, k.now())
	if err != nil {
		return nil, err
	}
	if old := k.newest(); old != nil && v.olderThan(old) {
		return nil, &sallyport.Problem{Kind: sallyport.ErrConflict,
			Fact: fmt.Sprintf("auth's snapshot %d of %s is older than the one held (%d of %s): what it says of roles and locks is not in force here", v.trust.Revision,
				v.issued.UTC().Format(time.RFC3339), old.trust.Revision, old.issued.UTC().Format(time.RFC3339)),
			Hint: "when auth was restored from a backup, remove " + filepath.Join(k.dir, snapshotFile) + " and restart; else look for a second auth"}
	}
	return v, nil
}

// Refusal is why the last snapshot that auth sent was refused; nil when it was
// taken.
func (k *Keeper) Refusal() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.refusal
}

// olderThan goes by the store's order first: clocks of two auth processes differ.
func (v *view) olderThan(old *view) bool {
	if v.trust.Revision != old.trust.Revision {
		return v.trust.Revision < old.trust.Revision
	}
	return v.issued.Before(old.issued)
}

func (k *Keeper) newest() *view {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.view
}

func (k *Keeper) set(v *view) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.view = v
	k.signers = merge(k.signers, v.trust.HostCAs)
	close(k.changed)
	k.changed = make(chan struct{})
}

// decode verifies and reads a snapshot that arrived at the given time.
func (k *Keeper) decode(s *sallyportv1.Signed, arrived time.Time) (*view, error) {
	if err := signed.Verify(k.Signers(), signed.Snapshot, s); err != nil {
		return nil, err
	}
	var m sallyportv1.Snapshot
	if err := proto.Unmarshal(s.GetPayload(), &m); err != nil {
		return nil, fmt.Errorf("snapshot: %w", err)
	}
	if m.GetCluster() != k.cluster {
		return nil, fmt.Errorf("snapshot of cluster %q, this host belongs to %q", m.GetCluster(), k.cluster)
	}
	trust, err := trustOf(&m)
	if err != nil {
		return nil, err
	}
	policy, err := policyOf(&m, k.log)
	if err != nil {
		return nil, err
	}
	v := &view{trust: *trust, issued: trust.IssuedAt, notAfter: m.GetNotAfter().AsTime(), policy: policy, maxAge: DefaultOfflineMaxAge}
	if v.issued.After(arrived) {
		v.trust.IssuedAt = arrived
	}
	if n := m.GetSettings().GetOfflineMaxAgeSeconds(); n > 0 {
		v.maxAge = time.Duration(min(n, maxOfflineSeconds)) * time.Second
	}
	if m.GetSettings().GetStrictLocks() {
		v.maxAge = min(v.maxAge, StrictMaxAge)
	}
	v.removed = m.GetRemovedHosts()
	for _, g := range m.GetGateways() {
		if g.GetAddress() != "" {
			v.gateways = append(v.gateways, g.GetAddress())
		}
	}
	return v, nil
}

func trustOf(m *sallyportv1.Snapshot) (*sallyport.Trust, error) {
	t := &sallyport.Trust{
		Cluster:       m.GetCluster(),
		Revision:      m.GetRevision(),
		IssuedAt:      m.GetIssuedAt().AsTime(),
		DatabaseUsers: map[string][]string{},
	}
	for _, a := range m.GetAuthorities() {
		certs, err := parseCertificates(a.GetCertificates())
		if err != nil {
			return nil, fmt.Errorf("snapshot: %s CA: %w", a.GetKind(), err)
		}
		switch a.GetKind() {
		case "user":
			t.UserCAs, t.SSHUserCAs = certs, a.GetSshPublicKeys()
		case "host":
			t.HostCAs, t.SSHHostCAs = certs, a.GetSshPublicKeys()
		case "db":
			t.DatabaseCAs = certs
		}
	}
	for _, l := range m.GetLocks() {
		t.Locks = append(t.Locks, sallyport.Lock{
			Name: l.GetName(), Message: l.GetMessage(), Expires: l.GetExpires(),
			Target: sallyport.LockTarget{User: l.GetUser(), Role: l.GetRole(), Login: l.GetLogin(),
				ServerID: l.GetServerId(), MFA: l.GetMfa(), Request: l.GetRequest()},
		})
	}
	for db, users := range m.GetDatabaseUsers() {
		t.DatabaseUsers[db] = users.GetValues()
	}
	return t, nil
}

// policyOf refuses the whole snapshot for one role that does not parse: what
// that role denies cannot be known.
func policyOf(m *sallyportv1.Snapshot, log *slog.Logger) (*rbac.Policy, error) {
	roles := make([]*rbac.Role, 0, len(m.GetRoles()))
	for _, doc := range m.GetRoles() {
		role, warnings, err := rbac.ParseRole(doc)
		if err != nil {
			return nil, fmt.Errorf("snapshot: %w", err)
		}
		for _, w := range warnings {
			log.Debug("role", "role", role.Name(), "warning", w.String())
		}
		roles = append(roles, role)
	}
	return rbac.NewPolicy(roles, m.GetRevision()), nil
}

// Trust meets access.Snapshot.
func (k *Keeper) Trust() (*sallyport.Trust, error) {
	v := k.newest()
	if v == nil {
		return nil, &sallyport.Problem{Kind: sallyport.ErrStaleSnapshot,
			Fact: "this host has had no contact with auth yet", Hint: "try again in a minute, or tell your administrator"}
	}
	if now := k.now(); now.Sub(v.trust.IssuedAt) > v.maxAge || now.After(v.notAfter) {
		return &v.trust, &sallyport.Problem{Kind: sallyport.ErrStaleSnapshot,
			Fact: "no contact with auth since " + v.trust.IssuedAt.UTC().Format(time.RFC3339),
			Hint: "new sessions are denied after " + v.maxAge.String() + " without contact; tell your administrator"}
	}
	return &v.trust, nil
}

// Changed meets access.Snapshot.
func (k *Keeper) Changed() <-chan struct{} {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.changed
}

// Decide meets access.Decider. Whether the view is fresh enough is Trust's answer.
func (k *Keeper) Decide(r sallyport.AccessRequest) sallyport.Decision {
	v := k.newest()
	if v == nil {
		return sallyport.Decision{Reason: "this host has had no contact with auth yet"}
	}
	return v.policy.Decide(r)
}

// Gateways are the cluster's gateways, host:port, as last told by auth.
func (k *Keeper) Gateways() []string {
	if v := k.newest(); v != nil {
		return v.gateways
	}
	return nil
}

// Removed are the ids of hosts that were removed from the cluster and may still
// hold good certificates, as last told by auth.
func (k *Keeper) Removed() []string {
	if v := k.newest(); v != nil {
		return v.removed
	}
	return nil
}

// Locked are the ids of hosts that a lock names, and nothing besides, as last told
// by auth.
func (k *Keeper) Locked() (ids []string) {
	v := k.newest()
	if v == nil {
		return nil
	}
	now := k.now().Unix()
	for _, l := range v.trust.Locks {
		host := l.Target.ServerID
		if host != "" && l.Target == (sallyport.LockTarget{ServerID: host}) && (l.Expires == 0 || l.Expires > now) {
			ids = append(ids, host)
		}
	}
	return ids
}

// Revision is that of the newest snapshot, 0 without one.
func (k *Keeper) Revision() uint64 {
	if v := k.newest(); v != nil {
		return v.trust.Revision
	}
	return 0
}

// Roots is the pool of host CAs.
func (k *Keeper) Roots() *x509.CertPool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return Pool(k.signers)
}

// Signers are the host CAs that may sign for the control plane.
func (k *Keeper) Signers() []*x509.Certificate {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.signers
}

// Pool makes a pool of certificates.
func Pool(certs []*x509.Certificate) *x509.CertPool {
	pool := x509.NewCertPool()
	for _, c := range certs {
		pool.AddCert(c)
	}
	return pool
}

// merge returns the CAs of a verified snapshot, which say all that is trusted
// from now on; without any the old ones stay.
func merge(old, newer []*x509.Certificate) []*x509.Certificate {
	if len(newer) == 0 {
		return old
	}
	return newer
}

func parseCertificates(ders [][]byte) ([]*x509.Certificate, error) {
	var out []*x509.Certificate
	for _, der := range ders {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, err
		}
		out = append(out, c)
	}
	return out, nil
}
