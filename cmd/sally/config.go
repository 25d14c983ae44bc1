package main

import (
	"fmt"
	"strings"
)

type configCmd struct {
	Port int `name:"port" short:"p" default:"3022" help:"Port to write; nodes are reached by name."`
}

// Run prints what goes into ~/.ssh/config. Standard output stays clean.
func (c *configCmd) Run(p *program) error {
	f, err := p.selected()
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(p.stdout, `# Begin generated Teleport configuration for %[1]s by sally
# Common flags for all %[2]s hosts
Host *.%[2]s %[3]s
    UserKnownHostsFile %[4]s
    IdentityFile %[5]s
    CertificateFile %[6]s
    IdentitiesOnly yes
# Flags for all %[2]s hosts except the proxy
Host *.%[2]s !%[3]s
    Port %[7]d
    ProxyCommand %[8]s%[9]s proxy ssh --cluster=%[2]s --proxy=%[1]s %%r@%%h:%%p
# End generated Teleport configuration
`, f.WebProxyAddr, f.Cluster, f.Name(), sshPath(p.home.KnownHosts()), sshPath(p.home.KeyPath(f, "")), sshPath(p.home.SSHCertPath(f)), c.Port, p.sshEnvironment(), shellWord(p.self))
	return err
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
