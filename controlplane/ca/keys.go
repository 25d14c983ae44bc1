package ca

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/controlplane/ca/signed"
	"github.com/sallyport/sallyport/controlplane/store"
	"github.com/sallyport/sallyport/identity"
	sallyportv1 "github.com/sallyport/sallyport/wire/sallyport/v1"
)

// Kind names an authority.
type Kind string

const (
	User     Kind = "user"
	Host     Kind = "host"
	Database Kind = "db"
)

// Kinds are all authorities, in the order in which they are shown.
func Kinds() []Kind { return []Kind{User, Host, Database} }

// Config says what the authorities need.
type Config struct {
	Store   store.Store
	Sealer  Sealer
	Cluster string
	Now     func() time.Time // default time.Now
}

// Keys are the authorities of one cluster, opened. They do not change while
// they are open; all methods may be called concurrently.
type Keys struct {
	cluster string
	now     func() time.Time
	all     map[Kind][]authority // newest first, never empty; the first signs
	tokens  []tokenKey           // same
}

// authority is one generation of one CA.
type authority struct {
	cert *x509.Certificate
	key  crypto.Signer
	ssh  ssh.Signer // nil for the db CA
}

// Authority is the public half of one CA, newest first.
type Authority struct {
	Kind         Kind
	Certificates []*x509.Certificate
	SSHKeys      []ssh.PublicKey
}

// record is how an authority stands in the store.
type record struct {
	Version int         `json:"version"`
	Cluster string      `json:"cluster"`
	Keys    []keyRecord `json:"keys"` // newest first
}

type keyRecord struct {
	Certificate []byte `json:"certificate"`          // DER
	TLSKey      []byte `json:"tls_key"`              // sealed PKCS #8
	SSHKey      []byte `json:"ssh_key,omitempty"`    // sealed PKCS #8
	SSHPublic   []byte `json:"ssh_public,omitempty"` // wire form
}

const (
	recordVersion = 1
	caLifetime    = 10 * 365 * 24 * time.Hour
)

func recordKey(k Kind) string { return "ca/" + string(k) }

// Open reads the authorities, and makes them at the first start.
func Open(ctx context.Context, cfg Config) (*Keys, error) {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if _, _, _, err := identity.ParseURI(identity.URI(sallyport.KindAuth, cfg.Cluster, "x")); err != nil {
		return nil, &sallyport.Problem{Kind: sallyport.ErrInvalid, Fact: "cluster name is not a DNS name in lower case",
			Hint: "set cluster to the public name of the gateway, for example gw.example.com", Cause: err}
	}
	k, err := load(ctx, cfg)
	if !errors.Is(err, sallyport.ErrNotFound) {
		return k, err
	}
	if err := create(ctx, cfg); err != nil && !errors.Is(err, sallyport.ErrExists) {
		return nil, err
	}
	return load(ctx, cfg)
}

// create makes all authorities or, when another process was faster, none.
func create(ctx context.Context, cfg Config) error {
	var ops []store.Op
	for _, kind := range Kinds() {
		rec, err := generate(cfg, kind)
		if err != nil {
			return err
		}
		value, err := json.Marshal(rec)
		if err != nil {
			return err
		}
		ops = append(ops, store.Op{Key: recordKey(kind), Value: value, Expect: store.Absent})
	}
	_, err := cfg.Store.Apply(ctx, ops...)
	return err
}

func generate(cfg Config, kind Kind) (*record, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	tmpl, err := authorityTemplate(kind, cfg.Cluster, cfg.Now())
	if err != nil {
		return nil, err
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		return nil, err
	}
	kr := keyRecord{Certificate: der}
	if kr.TLSKey, err = sealKey(cfg.Sealer, kind, "tls", key); err != nil {
		return nil, err
	}
	if kind != Database {
		if err := addSSH(cfg.Sealer, kind, &kr); err != nil {
			return nil, err
		}
	}
	return &record{Version: recordVersion, Cluster: cfg.Cluster, Keys: []keyRecord{kr}}, nil
}

func addSSH(s Sealer, kind Kind, kr *keyRecord) error {
	pub, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return err
	}
	sshPub, err := ssh.NewPublicKey(pub)
	if err != nil {
		return err
	}
	kr.SSHPublic = sshPub.Marshal()
	kr.SSHKey, err = sealKey(s, kind, "ssh", key)
	return err
}

func sealKey(s Sealer, kind Kind, part string, key crypto.Signer) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return s.Seal(recordKey(kind)+"/"+part, der)
}

func openKey(s Sealer, kind Kind, part string, sealed []byte) (crypto.Signer, error) {
	der, err := s.Open(recordKey(kind)+"/"+part, sealed)
	if err != nil {
		return nil, err
	}
	key, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return nil, err
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("%s: not a signing key", recordKey(kind))
	}
	return signer, nil
}

func load(ctx context.Context, cfg Config) (*Keys, error) {
	k := &Keys{cluster: cfg.Cluster, now: cfg.Now, all: make(map[Kind][]authority)}
	var err error
	for _, kind := range Kinds() {
		it, err := cfg.Store.Get(ctx, recordKey(kind))
		if err != nil {
			return nil, err
		}
		if k.all[kind], err = loadRecord(cfg, kind, it.Value); err != nil {
			return nil, &sallyport.Problem{Kind: sallyport.ErrInvalid, Fact: "the " + string(kind) + " CA cannot be used: " + err.Error(),
				Hint: hintOf(err), Cause: err}
		}
	}
	if k.tokens, err = openTokens(ctx, cfg); err != nil {
		return nil, err
	}
	return k, nil
}

func hintOf(err error) string {
	var p *sallyport.Problem
	if errors.As(err, &p) {
		return p.Hint
	}
	return "restore the store from a backup"
}

func loadRecord(cfg Config, kind Kind, value []byte) ([]authority, error) {
	var rec record
	if err := json.Unmarshal(value, &rec); err != nil {
		return nil, err
	}
	if rec.Version != recordVersion || len(rec.Keys) == 0 {
		return nil, fmt.Errorf("record of version %d with %d keys", rec.Version, len(rec.Keys))
	}
	if rec.Cluster != cfg.Cluster {
		return nil, &sallyport.Problem{Kind: sallyport.ErrInvalid,
			Fact: fmt.Sprintf("it belongs to cluster %q, not %q", rec.Cluster, cfg.Cluster),
			Hint: "a cluster's name cannot be changed: set cluster to what it was, or use another data_dir"}
	}
	var out []authority
	for _, kr := range rec.Keys {
		a, err := loadKey(cfg.Sealer, kind, kr)
		if err != nil {
			return nil, err
		}
		out = append(out, a)
	}
	return out, nil
}

// loadKey opens one generation, and checks that its private keys are those of
// its public ones: who can write to the store must not be able to mix them.
func loadKey(s Sealer, kind Kind, kr keyRecord) (a authority, err error) {
	if a.cert, err = x509.ParseCertificate(kr.Certificate); err != nil {
		return a, err
	}
	if a.key, err = openKey(s, kind, "tls", kr.TLSKey); err != nil {
		return a, err
	}
	if pub, ok := a.cert.PublicKey.(*ecdsa.PublicKey); !ok || !pub.Equal(a.key.Public()) {
		return a, errors.New("certificate and key do not belong together")
	}
	if kind == Database {
		return a, nil
	}
	key, err := openKey(s, kind, "ssh", kr.SSHKey)
	if err != nil {
		return a, err
	}
	if a.ssh, err = ssh.NewSignerFromSigner(key); err != nil {
		return a, err
	}
	if !bytes.Equal(a.ssh.PublicKey().Marshal(), kr.SSHPublic) {
		return a, errors.New("SSH key and its public half do not belong together")
	}
	return a, nil
}

// Cluster is the name that all certificates carry.
func (k *Keys) Cluster() string { return k.cluster }

// Authorities are the public halves of all CAs, in the order of Kinds.
func (k *Keys) Authorities() []Authority {
	var out []Authority
	for _, kind := range Kinds() {
		out = append(out, k.Authority(kind))
	}
	return out
}

// Authority is the public half of one CA.
func (k *Keys) Authority(kind Kind) Authority {
	a := Authority{Kind: kind}
	for _, one := range k.all[kind] {
		a.Certificates = append(a.Certificates, one.cert)
		if one.ssh != nil {
			a.SSHKeys = append(a.SSHKeys, one.ssh.PublicKey())
		}
	}
	return a
}

// Pool holds the certificates of one CA.
func (k *Keys) Pool(kind Kind) *x509.CertPool {
	pool := x509.NewCertPool()
	for _, a := range k.all[kind] {
		pool.AddCert(a.cert)
	}
	return pool
}

// Pins are the pins of the host CA, newest first: what a joining host or a
// first login checks the cluster by.
func (k *Keys) Pins() []string {
	var out []string
	for _, a := range k.all[Host] {
		out = append(out, identity.Pin(a.cert))
	}
	return out
}

// Sign signs a payload with the host CA's key.
func (k *Keys) Sign(domain signed.Domain, payload []byte) (*sallyportv1.Signed, error) {
	a := k.all[Host][0]
	return signed.Make(a.cert, a.key, domain, payload)
}
