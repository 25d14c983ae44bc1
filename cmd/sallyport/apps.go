package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"reflect"
	"strings"
	"time"

	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	awsconfig "github.com/aws/aws-sdk-go-v2/config"
	"golang.org/x/net/http/httpguts"
	"golang.org/x/net/http/httpproxy"

	"github.com/sallyport/sallyport/controlplane/rbac"
	"github.com/sallyport/sallyport/dataplane/protocol/app"
	"github.com/sallyport/sallyport/dataplane/protocol/aws"
	"github.com/sallyport/sallyport/dataplane/session"
)

// apps are the servers of this moment, by name. It is not changed once made.
type apps struct {
	configured map[string]appConfig
	servers    map[string]appServer
}

// appServer serves one application: package app's, or package aws's.
type appServer interface {
	Serve(ctx context.Context, c *session.Candidate, conn net.Conn) error
}

// change makes what c says; what has not changed stays the same server.
func (a apps) change(c []appConfig, open func(appConfig) (appServer, error)) (apps, error) {
	next := apps{configured: map[string]appConfig{}, servers: map[string]appServer{}}
	for _, w := range c {
		next.configured[w.Name] = w
		if was, there := a.configured[w.Name]; there && reflect.DeepEqual(was, w) {
			next.servers[w.Name] = a.servers[w.Name]
			continue
		}
		s, err := open(w)
		if err != nil {
			return apps{}, fmt.Errorf("agent.apps %s: %w", w.Name, err)
		}
		next.servers[w.Name] = s
	}
	return next, nil
}

// release lets go of the servers that are not in next: what they serve goes on.
func (a apps) release(next apps) {
	for name, s := range a.servers {
		// Those of package aws keep nothing beyond a session.
		if keeps, ok := s.(interface{ Close() }); ok && next.servers[name] != s {
			keeps.Close()
		}
	}
}

// openApp makes the server of one application.
func (r *agentRole) openApp(w appConfig) (appServer, error) {
	if w.isAWS() {
		return r.openAWS(w)
	}
	t := app.Target{URI: w.URI, ServerName: w.TLS.ServerName, Insecure: w.TLS.Insecure, Redirects: w.Rewrite.Redirects}
	for _, text := range w.Rewrite.Headers {
		h, err := parseHeader(text)
		if err != nil {
			return nil, err
		}
		t.Headers = append(t.Headers, h)
	}
	if w.TLS.CA != "" {
		pool, err := certPool(w.TLS.CA)
		if err != nil {
			return nil, err
		}
		t.Roots = pool
	}
	if err := t.Check(); err != nil {
		return nil, err
	}
	return &app.Server{Cluster: r.host.Cluster(), Target: t, Token: r.host.AppToken, Log: r.log}, nil
}

// chainTimeout bounds one request by which the AWS SDK finds the agent's own
// credentials: it waits for an answer without an end.
const chainTimeout = 30 * time.Second

// openAWS makes the server of an application that is for AWS's clients. Nothing is
// asked yet: credentials are looked for when a request needs them.
func (r *agentRole) openAWS(w appConfig) (appServer, error) {
	t := aws.Target{URI: w.URI, ServerName: w.TLS.ServerName, Insecure: w.TLS.Insecure, Services: w.AWS.Services, Regions: w.AWS.Regions}
	if w.TLS.CA != "" {
		pool, err := certPool(w.TLS.CA)
		if err != nil {
			return nil, err
		}
		t.Roots = pool
	}
	a := &aws.Account{OwnRole: w.AWS.OwnRole, ExternalID: w.AWS.ExternalID, STS: w.AWS.STS, Log: r.log}
	var proxy func(*http.Request) (*url.URL, error)
	if proxies := httpproxy.FromEnvironment(); proxies.HTTPSProxy != "" {
		ask := proxies.ProxyFunc()
		proxy = func(r *http.Request) (*url.URL, error) { return ask(r.URL) }
	}
	if aws.IsConsole(w.URI) {
		t.Proxy = proxy
	} else if a.STS == "" {
		a.STS, a.NoSTS = w.URI, aws.CheckSTS(w.URI) != nil
	}
	if err := t.Check(); err != nil {
		return nil, err
	}
	var err error
	// The chain of credentials may ask the machine's metadata service, and its own STS.
	chain := awshttp.NewBuildableClient().WithTimeout(chainTimeout)
	if a.Config, err = awsconfig.LoadDefaultConfig(context.Background(), awsconfig.WithHTTPClient(chain)); err != nil {
		return nil, fmt.Errorf("the AWS SDK's configuration: %w", err)
	}
	a.Config.HTTPClient = t.STSClient(a.STS, proxy)
	return &aws.Server{Cluster: r.host.Cluster(), Target: t, Account: a, Log: r.log}, nil
}

// parseHeader reads "Name: value".
func parseHeader(text string) (app.Header, error) {
	name, value, ok := strings.Cut(text, ":")
	if !ok {
		return app.Header{}, fmt.Errorf("%q is not \"Name: value\"", text)
	}
	if err := app.CheckHeader(name); err != nil {
		return app.Header{}, err
	}
	value = strings.TrimSpace(value)
	if !httpguts.ValidHeaderFieldValue(value) {
		return app.Header{}, errors.New("a value cannot hold control characters")
	}
	v, err := rbac.ParseValue(value)
	if err != nil {
		return app.Header{}, err
	}
	return app.Header{Name: name, Values: v.Expand}, nil
}

func (r *agentRole) app(ctx context.Context, c *session.Candidate, conn net.Conn) error {
	s := r.apps.Load().servers[c.Resource.Name]
	if s == nil {
		return fmt.Errorf("%w: application %s is not configured here", session.ErrCut, c.Resource.Name)
	}
	return s.Serve(ctx, c, conn)
}
