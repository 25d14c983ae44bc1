package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sallyport/sallyport/tools/peers"
)

// secondNode brings another agent to the demo.
func (d *demo) secondNode(t *testing.T, p *person, name string) {
	t.Helper()
	dir := shortDir(t)
	var token struct {
		Token string `json:"token"`
	}
	if err := json.Unmarshal([]byte(p.run("sallyctl", "--data-dir="+d.data, "tokens", "add", "--type=agent", "--single-use", "--format=json")), &token); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "agent.yaml")
	for path, text := range map[string]string{
		filepath.Join(dir, "token"): token.Token + "\n",
		file: fmt.Sprintf("version: 1\ndata_dir: data\nroles: [agent]\nagent:\n  gateways: [%q]\n  join: {token_file: %q, ca_pin: %q}\n  ssh: {enabled: true, name: %s}\n",
			d.Proxy, filepath.Join(dir, "token"), d.CAPin, name),
	} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	start(t, "sallyport", "start", "-c", file)
	await(t, name+" online", upWait, func() bool {
		r := p.try("", "sally", "ssh", login(t)+"@"+name, "true")
		return r.code == 0
	})
}

// testAnsible runs Ansible against two nodes, by each form of the written
// configuration: modules over ssh, files over sftp, connections that are shared
// by several commands.
func testAnsible(t *testing.T, d *demo, p *person) {
	if _, err := exec.LookPath("ansible"); err != nil {
		peers.Missing(t, "ansible")
	}
	d.secondNode(t, p, "second")
	config, jump := p.sshConfig(t), p.jumpConfig(t)
	there := t.TempDir()
	hosts := []string{d.name("node") + "." + d.Cluster, "second." + d.Cluster}
	inventory, source := filepath.Join(p.home, "inventory"), filepath.Join(p.home, "source")
	for path, text := range map[string]string{
		inventory: "[nodes]\n" + strings.Join(hosts, "\n") + "\n[nodes:vars]\nansible_user=" + login(t) + "\nansible_python_interpreter=/usr/bin/python3\nansible_remote_tmp=" + there + "/tmp\n",
		source:    "copied by Ansible\n",
	} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	p.extra = append(p.extra, "ANSIBLE_TIMEOUT=60", "ANSIBLE_HOME="+filepath.Join(p.home, "ansible"), "ANSIBLE_SSH_ARGS=-o ControlMaster=auto -o ControlPersist=1s", "ANSIBLE_NOCOLOR=1")
	out := p.run("ansible", "nodes", "-i", inventory, "--ssh-common-args=-F "+config, "-m", "ping")
	if n := strings.Count(out, `"ping": "pong"`); n != len(hosts) {
		t.Errorf("%d of %d nodes answered:\n%s", n, len(hosts), out)
	}
	p.run("ansible", "nodes", "-i", inventory, "--ssh-common-args=-F "+jump, "-m", "copy", "-a", "mode=0640 src="+source+" dest="+there+"/{{inventory_hostname}}")
	for _, h := range hosts {
		if got, err := os.ReadFile(filepath.Join(there, h)); err != nil || string(got) != "copied by Ansible\n" {
			t.Errorf("%s: %q, %v", h, got, err)
		}
	}
}
