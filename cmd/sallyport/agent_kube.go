package main

import (
	"context"
	"fmt"
	"net"
	"reflect"

	"github.com/sallyport/sallyport/dataplane/protocol/kube"
	"github.com/sallyport/sallyport/dataplane/session"
)

// clusters are the Kubernetes clusters of this moment.
type clusters struct {
	configured map[string]kubernetesConfig
	servers    map[string]*kube.Server
}

// change makes what c says; what has not changed keeps its warm connections.
// A kubeconfig file that has changed is read again when its entry here changes,
// or at a restart; tokens in files of their own are read again each minute.
func (s *clusters) change(c []kubernetesConfig, open func(kubernetesConfig) (*kube.Server, error)) (*clusters, error) {
	next := &clusters{configured: map[string]kubernetesConfig{}, servers: map[string]*kube.Server{}}
	for _, k := range c {
		if was, there := s.configured[k.Name]; there && reflect.DeepEqual(was, k) {
			next.servers[k.Name] = s.servers[k.Name]
		} else {
			server, err := open(k)
			if err != nil {
				return nil, err
			}
			next.servers[k.Name] = server
		}
		next.configured[k.Name] = k
	}
	return next, nil
}

// release lets the idle connections go of what next does not have. Requests
// under way end as they would.
func (s *clusters) release(next *clusters) {
	for name, server := range s.servers {
		if next.servers[name] != server {
			server.Target.Close()
		}
	}
}

// openCluster makes the server of one cluster.
func (r *agentRole) openCluster(k kubernetesConfig) (*kube.Server, error) {
	var target *kube.Target
	var err error
	if k.InCluster {
		target, err = kube.InCluster()
	} else {
		target, err = kube.FromKubeconfig(k.Kubeconfig, k.Context)
	}
	if err != nil {
		return nil, fmt.Errorf("agent.kubernetes %s: %w", k.Name, err)
	}
	return &kube.Server{Target: target, Log: r.log}, nil
}

func (r *agentRole) kubernetes(ctx context.Context, c *session.Candidate, conn net.Conn) error {
	s := r.clusters.Load().servers[c.Resource.Name]
	if s == nil {
		return fmt.Errorf("%w: Kubernetes cluster %s is not configured here", session.ErrCut, c.Resource.Name)
	}
	return s.Serve(ctx, c, conn)
}
