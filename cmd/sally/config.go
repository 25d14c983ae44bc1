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
    ProxyCommand %[8]s proxy ssh --cluster=%[2]s --proxy=%[1]s %%r@%%h:%%p
# End generated Teleport configuration
`, f.WebProxyAddr, f.Cluster, f.Name(), sshPath(p.home.KnownHosts()), sshPath(p.home.KeyPath(f, "")), sshPath(p.home.SSHCertPath(f)), c.Port, sshProgram(p.self))
	return err
}

// sshPath is a file's name in ssh_config(5): quoted, and no token for it to expand.
func sshPath(path string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, "%", "%%").Replace(path) + `"`
}

// sshProgram is a program's name in ProxyCommand, which ssh hands to a shell
// after it has expanded tokens.
func sshProgram(path string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, "$", `\$`, "`", "\\`", "%", "%%").Replace(path) + `"`
}
