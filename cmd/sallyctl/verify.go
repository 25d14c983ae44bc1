package main

import (
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/cmd/internal/fail"
	"github.com/sallyport/sallyport/cmd/internal/output"
	"github.com/sallyport/sallyport/controlplane/audit"
	"github.com/sallyport/sallyport/controlplane/ca/signed"
	sallyportv1 "github.com/sallyport/sallyport/wire/sallyport/v1"
)

type auditVerifyCmd struct {
	format
	Dir   string `arg:"" optional:"" help:"Directory of the log; without, that of auth on this machine."`
	CA    string `name:"ca" placeholder:"FILE" help:"Host CA that signed it (sallyctl auth export --type=tls-host); without, auth is asked."`
	After string `name:"after" placeholder:"HEAD" help:"A head that verify printed before: the log must hold it, so nobody took it back."`
}

type verifyJSON struct {
	Whole      bool      `json:"whole"`
	Log        string    `json:"log"`
	Head       string    `json:"head"`
	Segments   int       `json:"segments"`
	Events     uint64    `json:"events"`
	Signatures int       `json:"signatures"`
	From       time.Time `json:"from"`
	To         time.Time `json:"to"`
	Unfinished int64     `json:"unfinished_bytes"`
	Faults     []string  `json:"faults"`
}

// Run finds every missing, changed, moved or added line.
func (c *auditVerifyCmd) Run(p *program) error {
	dir, err := c.dir(p)
	if err != nil {
		return err
	}
	cas, err := c.authorities(p)
	if err != nil {
		return err
	}
	before, err := parseHead(c.After)
	if err != nil {
		return err
	}
	r, fault := audit.VerifyAfter(dir, func(head, signature []byte) error { return verifyHead(cas, head, signature) }, before)
	if fault != nil && len(r.Faults) == 0 {
		return fault
	}
	v := verifyJSON{Whole: fault == nil, Log: r.Log.String(), Head: headText(r.Head), Segments: r.Segments, Events: r.Events, Signatures: r.Heads, From: r.From, To: r.To, Unfinished: r.Unfinished, Faults: []string{}}
	for _, f := range r.Faults {
		v.Faults = append(v.Faults, fmt.Sprintf("%+v", f))
	}
	if c.Format != "text" {
		if err := output.Write(p.stdout, c.Format, v); err != nil {
			return err
		}
		return fault
	}
	fmt.Fprintf(p.stdout, "%d events in %d segments, %d signatures, from %s to %s\nhead %s\n", v.Events, v.Segments, v.Signatures, v.From.Format(time.RFC3339), v.To.Format(time.RFC3339), v.Head)
	for _, f := range v.Faults {
		fmt.Fprintln(p.stdout, "FAULT: "+fail.Clean(f))
	}
	if fault == nil {
		fmt.Fprintln(p.stdout, "The log is whole.")
	}
	return fault
}

func (c *auditVerifyCmd) dir(p *program) (string, error) {
	if c.Dir != "" {
		return c.Dir, nil
	}
	l, err := p.local()
	return filepath.Join(l.dir, "auth", "audit"), err
}

func (c *auditVerifyCmd) authorities(p *program) ([]*x509.Certificate, error) {
	if c.CA != "" {
		b, err := os.ReadFile(c.CA)
		if err != nil {
			return nil, err
		}
		return parsePEM(c.CA, b)
	}
	api, err := p.admin()
	if err != nil {
		return nil, err
	}
	m, err := call(p, api.ExportAuthorities, &sallyportv1.ExportAuthoritiesRequest{})
	if err != nil {
		return nil, err
	}
	for _, a := range m.GetAuthorities() {
		if a.GetKind() == "host" {
			return parsePEM("auth's answer", certificates(a.GetCertificates()))
		}
	}
	return nil, &sallyport.Problem{Kind: sallyport.ErrNotFound, Fact: "auth told no host CA", Hint: "use --ca"}
}

func parsePEM(where string, b []byte) ([]*x509.Certificate, error) {
	var out []*x509.Certificate
	for {
		var block *pem.Block
		if block, b = pem.Decode(b); block == nil {
			break
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", where, err)
		}
		out = append(out, cert)
	}
	if len(out) == 0 {
		return nil, &sallyport.Problem{Kind: sallyport.ErrInvalid, Fact: where + ": no certificate in it", Hint: "sallyctl auth export --type=tls-host"}
	}
	return out, nil
}

// verifyHead takes a signature by any of the CAs.
func verifyHead(cas []*x509.Certificate, head, signature []byte) error {
	err := fmt.Errorf("no CA to check the signature by")
	for _, ca := range cas {
		m := &sallyportv1.Signed{Payload: head, Signature: signature, KeyId: signed.KeyID(ca)}
		if err = signed.Verify([]*x509.Certificate{ca}, signed.AuditHead, m); err == nil {
			return nil
		}
	}
	return err
}

// A head in text: log, number and hash of its last line.
func headText(h audit.Head) string {
	return h.Log.String() + ":" + strconv.FormatUint(h.Sequence, 10) + ":" + hex.EncodeToString(h.Hash[:])
}

func parseHead(s string) (audit.Head, error) {
	if s == "" {
		return audit.Head{}, nil
	}
	parts := strings.Split(s, ":")
	bad := &sallyport.Problem{Kind: sallyport.ErrInvalid, Fact: fmt.Sprintf("%q is not a head", s), Hint: "take it from what audit verify printed"}
	if len(parts) != 3 {
		return audit.Head{}, bad
	}
	log, err := uuid.Parse(parts[0])
	seq, serr := strconv.ParseUint(parts[1], 10, 64)
	hash, herr := hex.DecodeString(parts[2])
	if err != nil || serr != nil || herr != nil || len(hash) != 32 {
		return audit.Head{}, bad
	}
	return audit.Head{Log: log, Sequence: seq, Hash: [32]byte(hash)}, nil
}
