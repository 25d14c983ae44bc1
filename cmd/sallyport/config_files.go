package main

import (
	"fmt"

	"github.com/sallyport/sallyport/dataplane/protocol/kube"
)

// readFiles reads the files that a configuration names, as a start does: a role that
// cannot read one of its own does not start. The first that is not good is the error.
// A join token is not among them: it may be gone when the host has joined.
func (c *config) readFiles() error {
	if c.has(roleAuth) {
		if _, err := clientTLS(c.Auth.Etcd.TLS); err != nil {
			return fmt.Errorf("auth.etcd.tls: %w", err)
		}
	}
	if c.has(roleGateway) {
		if _, err := loadCertificates(c.Gateway.Certificates); err != nil {
			return err
		}
	}
	if !c.has(roleAgent) {
		return nil
	}
	for _, d := range c.Agent.Databases {
		if err := readable(d.TLS.CA); err != nil {
			return fmt.Errorf("agent.databases %s: %w", d.Name, err)
		}
	}
	for _, a := range c.Agent.Apps {
		if err := readable(a.TLS.CA); err != nil {
			return fmt.Errorf("agent.apps %s: %w", a.Name, err)
		}
	}
	for _, k := range c.Agent.Kubernetes {
		if k.InCluster {
			continue // where it is checked may be elsewhere
		}
		t, err := kube.FromKubeconfig(k.Kubeconfig, k.Context)
		if err != nil {
			return fmt.Errorf("agent.kubernetes %s: %w", k.Name, err)
		}
		t.Close()
	}
	return nil
}

// readable says whether there are CAs in a file, if there is one.
func readable(cas string) error {
	if cas == "" {
		return nil
	}
	_, err := certPool(cas)
	return err
}
