package main

import (
	"fmt"
	"net"
	"strings"

	"github.com/sallyport/sallyport/cmd/internal/profile"
)

type configCmd struct {
	Port int  `name:"port" short:"p" default:"3022" help:"Port to write; nodes are reached by name."`
	Jump bool `name:"jump" help:"Go by the gateway's jump server (ProxyJump), so that ssh needs no sally: only the login's files, which the configuration names."`
}

// sshCiphers are those that nodes take. Of OpenSSH's own order the first would be
// ChaCha20-Poly1305, and inside TLS, on processors with AES, that costs a copy of
// a large file a third more.
const sshCiphers = "aes128-gcm@openssh.com,aes256-gcm@openssh.com,chacha20-poly1305@openssh.com,aes256-ctr,aes128-ctr"

// Run prints what goes into ~/.ssh/config. Standard output stays clean.
func (c *configCmd) Run(p *program) error {
	f, err := p.selected()
	if err != nil {
		return err
	}
	names := f.Name()
	way := fmt.Sprintf(`# Flags for all %[2]s hosts except the proxy
Host *.%[2]s !%[3]s
    Port %[4]d
    ProxyCommand %[5]s%[6]s proxy ssh --cluster=%[2]s --proxy=%[1]s %%r@%%h:%%p
`, f.WebProxyAddr, f.Cluster, f.Name(), c.Port, p.sshEnvironment(), shellWord(p.self))
	if c.Jump {
		names = proxyHosts(f)
		if way, err = c.jump(f); err != nil {
			return err
		}
	}
	_, err = fmt.Fprintf(p.stdout, `# Begin generated Teleport configuration for %[1]s by sally
# Common flags for all %[2]s hosts
Host *.%[2]s %[3]s
    UserKnownHostsFile %[4]s
    IdentityFile %[5]s
    CertificateFile %[6]s
    IdentitiesOnly yes
    Ciphers %[7]s
%[8]s# End generated Teleport configuration
`, f.WebProxyAddr, f.Cluster, names, sshPath(p.home.KnownHosts()), sshPath(p.home.KeyPath(f, "")), sshPath(p.home.SSHCertPath(f)), sshCiphers, way)
	return err
}

// jump is the way through the gateway's jump server. The gateway's certificate is
// for the cluster's name, wherever it listens.
func (c *configCmd) jump(f profile.Profile) (string, error) {
	host, port, err := net.SplitHostPort(f.WebProxyAddr)
	if err != nil {
		return "", problem(errInvalid, fmt.Sprintf("the gateway's address %q has no port", f.WebProxyAddr), "log in again with: sally login --proxy=HOST:PORT")
	}
	return fmt.Sprintf(`# The proxy, which leads to the hosts
Host %[1]s
    HostName %[2]s
    Port %[3]s
    HostKeyAlias %[4]s
# Flags for all %[4]s hosts except the proxy
Host *.%[4]s !%[5]s
    Port %[6]d
    ProxyJump %[4]s
`, proxyHosts(f), host, port, f.Cluster, f.Name(), c.Port), nil
}

// proxyHosts are the names of the gateway: that by which it was logged in to, and
// the cluster's.
func proxyHosts(f profile.Profile) string {
	if f.Name() == f.Cluster {
		return f.Cluster
	}
	return f.Cluster + " " + f.Name()
}

// sshEnvironment comes before the program in ProxyCommand: ssh may be started
// where SALLY_HOME is not what it is here, and would find no login. ssh puts
// "exec" before the command, so an assignment alone will not do.
func (p *program) sshEnvironment() string {
	if p.home.Usual() {
		return ""
	}
	return "env SALLY_HOME=" + shellWord(string(p.home)) + " "
}

// sshPath is a file's name in ssh_config(5): quoted, and no token for it to expand.
func sshPath(path string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, "%", "%%").Replace(path) + `"`
}

// shellWord is a word of ProxyCommand, which ssh hands to a shell after it has
// expanded tokens.
func shellWord(path string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, "$", `\$`, "`", "\\`", "%", "%%").Replace(path) + `"`
}
