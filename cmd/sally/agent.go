package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/cmd/internal/fail"
	"github.com/sallyport/sallyport/cmd/internal/profile"
	sallyportv1 "github.com/sallyport/sallyport/wire/sallyport/v1"
)

// agentMark begins the comment of every key of ours in ssh-agent.
const agentMark = "sallyport"

// agentComment marks our keys in ssh-agent, so that only they are removed.
func agentComment(f profile.Profile) string {
	return strings.Join([]string{agentMark, f.Name(), f.Cluster, f.User}, ":")
}

// atGateway says that a comment is of agentComment, for any user at the profile's
// gateway: a cluster and a user follow. More is another gateway's, whose IPv6
// address begins with this one's name.
func atGateway(comment string, f profile.Profile) bool {
	rest, ok := strings.CutPrefix(comment, agentMark+":"+f.Name()+":")
	return ok && strings.Count(rest, ":") == 1 || comment == agentComment(f)
}

// agentTimeout bounds one talk with ssh-agent.
const agentTimeout = 10 * time.Second

// addToAgent gives the key to ssh-agent until the certificate ends. Whether
// there must be an agent is for --add-keys-to-agent to say: with auto, a login
// is good without.
func (p *program) addToAgent(f profile.Profile, k keyPair, m *sallyportv1.LoginResponse) error {
	if p.AddKeysToAgent == "no" {
		return nil
	}
	a, closer, err := sshAgent()
	if err != nil {
		if p.AddKeysToAgent == "auto" {
			return nil
		}
		return problem(sallyport.ErrUnavailable, "no ssh-agent can be reached: "+err.Error(), "start ssh-agent, or use --add-keys-to-agent=no")
	}
	defer closer()
	err = add(a, f, k, m)
	if err != nil && p.AddKeysToAgent == "auto" {
		fmt.Fprintln(p.stderr, "WARNING: ssh-agent did not take the key: "+fail.Clean(err.Error()))
		return nil
	}
	return err
}

func add(a agent.ExtendedAgent, f profile.Profile, k keyPair, m *sallyportv1.LoginResponse) error {
	cert, err := certificate(m.GetSshCertificate())
	if err != nil {
		return err
	}
	life := uint32(max(1, time.Until(m.GetExpires().AsTime()).Seconds()))
	if err := a.Add(agent.AddedKey{PrivateKey: k.ssh, Certificate: cert, Comment: agentComment(f), LifetimeSecs: life}); err != nil {
		return err // and the key of the login before is still there
	}
	return removeFromAgent(a, func(k *agent.Key) bool {
		return k.Comment == agentComment(f) && !bytes.Equal(k.Blob, cert.Marshal())
	})
}

func certificate(line []byte) (*ssh.Certificate, error) {
	pub, _, _, _, err := ssh.ParseAuthorizedKey(line)
	if err != nil {
		return nil, err
	}
	cert, ok := pub.(*ssh.Certificate)
	if !ok {
		return nil, errors.New("the gateway sent no SSH certificate")
	}
	return cert, nil
}

func sshAgent() (agent.ExtendedAgent, func() error, error) {
	path := os.Getenv("SSH_AUTH_SOCK")
	if path == "" {
		return nil, nil, errors.New("SSH_AUTH_SOCK is not set")
	}
	conn, err := net.DialTimeout("unix", path, 2*time.Second)
	if err != nil {
		return nil, nil, err
	}
	if err := conn.SetDeadline(time.Now().Add(agentTimeout)); err != nil {
		conn.Close()
		return nil, nil, err
	}
	return agent.NewClient(conn), conn.Close, nil
}

// signer is the profile's SSH key with its certificate: from the file, or from
// ssh-agent when it was kept only there. Call done after the last signature.
func (p *program) signer(f profile.Profile) (s ssh.Signer, done func() error, err error) {
	if p.held != nil {
		s, err = p.held.file.Signer(p.held.path)
		return s, func() error { return nil }, err
	}
	err = p.home.Settled(func() (err error) {
		s, done, err = p.kept(f)
		return err
	})
	return s, done, err
}

// kept is signer for what a login has kept.
func (p *program) kept(f profile.Profile) (s ssh.Signer, done func() error, err error) {
	s, _, err = p.home.SSHSigner(f)
	if !errors.Is(err, fs.ErrNotExist) {
		return s, func() error { return nil }, err
	}
	cert, err := p.home.SSHCertificate(f)
	if err != nil {
		return nil, nil, profile.ErrNotLoggedIn
	}
	a, done, err := sshAgent()
	if err != nil {
		return nil, nil, problem(sallyport.ErrUnavailable, "your key is only in ssh-agent, which cannot be reached: "+err.Error(), "sally login --force")
	}
	all, err := a.Signers()
	for _, s := range all {
		if bytes.Equal(s.PublicKey().Marshal(), cert.Marshal()) {
			return s, done, nil
		}
	}
	done()
	if err != nil {
		return nil, nil, fmt.Errorf("ssh-agent: %w", err)
	}
	return nil, nil, problem(sallyport.ErrUnauthorized, "your key was only in ssh-agent, and is no longer there", "sally login --force")
}

// removeFromAgent removes the keys that are ours, and no others.
func removeFromAgent(a agent.ExtendedAgent, ours func(*agent.Key) bool) error {
	keys, err := a.List()
	if err != nil {
		return err
	}
	for _, k := range keys {
		if !ours(k) {
			continue
		}
		if err := a.Remove(k); err != nil {
			return err
		}
	}
	return nil
}
