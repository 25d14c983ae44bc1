package kube

import (
	"path/filepath"
	"strings"
	"testing"
)

func TestKubeconfigFaults(t *testing.T) {
	const cluster = "clusters: [{name: c, cluster: {server: 'https://a'}}]\n"
	const user = "users: [{name: u, user: {token: secret-token}}]\n"
	const context = "contexts: [{name: x, context: {cluster: c, user: u}}]\n"
	for text, says := range map[string]string{
		"": `no context ""`,
		"current-context: y\n" + cluster + user + context:                                                                           `no context "y"`,
		"current-context: x\n" + user + context:                                                                                     "is not there",
		"current-context: x\n" + cluster + context:                                                                                  "is not there",
		"current-context: x\nclusters: [{name: c, cluster: {server: 'http://a'}}]\n" + user + context:                               "https://",
		"current-context: x\nclusters: [{name: c, cluster: {server: 'https://u:p@a'}}]\n" + user + context:                          "https://",
		"current-context: x\nclusters: [{name: c, cluster: {server: 'https://a', proxy-url: 'http://b'}}]\n" + user + context:       "proxy-url",
		"current-context: x\nclusters: [{name: c, cluster: {server: 'https://a', certificate-authority: none}}]\n" + user + context: "certificate-authority",
		"current-context: x\n" + cluster + "users: [{name: u, user: {}}]\n" + context:                                               "neither a certificate nor a token",
		"current-context: x\n" + cluster + "users: [{name: u, user: {exec: {command: a}}}]\n" + context:                             "by a program",
		"current-context: x\n" + cluster + "users: [{name: u, user: {auth-provider: {name: a}}}]\n" + context:                       "by a program",
		"current-context: x\n" + cluster + "users: [{name: u, user: {token: a, as: b}}]\n" + context:                                "impersonates",
		"current-context: x\n" + cluster + "users: [{name: u, user: {username: a, password: secret-token}}]\n" + context:            "passwords",
		"current-context: x\n" + cluster + "users: [{name: u, user: {client-certificate-data: '!'}}]\n" + context:                   "not base64",
		"current-context: x\n" + cluster + "users: [{name: u, user: {tokenFile: none}}]\n" + context:                                "tokenFile",
		"users: [{token: secret-token": "not a kubeconfig",
	} {
		path := filepath.Join(t.TempDir(), "config")
		write(t, path, text)
		_, err := FromKubeconfig(path, "")
		if err == nil || !strings.Contains(err.Error(), says) || strings.Contains(err.Error(), "secret-token") {
			t.Errorf("%q: %v, want %q", text, err, says)
		}
	}
}

func TestInCluster(t *testing.T) {
	if _, err := inCluster("", "", t.TempDir()); err == nil || !strings.Contains(err.Error(), "not in a pod") {
		t.Error(err)
	}
	dir := t.TempDir()
	write(t, filepath.Join(dir, "token"), "one")
	write(t, filepath.Join(dir, "ca.crt"), "none")
	if _, err := inCluster("10.0.0.1", "443", dir); err == nil {
		t.Error("a CA without a certificate is taken")
	}
}

// TestTokenFile: a token that was replaced is used before the old one ends.
func TestTokenFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "token")
	write(t, path, "one\n")
	b := &bearer{path: path}
	if got, err := b.get(); got != "one" || err != nil {
		t.Fatal(got, err)
	}
	write(t, path, "two")
	b.read = b.read.Add(-2 * tokenLife)
	if got, err := b.get(); got != "two" || err != nil {
		t.Error(got, err)
	}
	write(t, path, "")
	b.read = b.read.Add(-2 * tokenLife)
	if got, err := b.get(); got != "two" || err != nil {
		t.Error("an empty file for a moment:", got, err)
	}
}
