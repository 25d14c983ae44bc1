package main

import (
	"fmt"
	"strings"

	"github.com/sallyport/sallyport"
)

// kinds of documents, in the order in which "get all" prints them: what a document
// names stands before it.
var kinds = []string{"role", "user", "lock"}

// elsewhere is what tctl calls a resource, and where it is here.
var elsewhere = map[string]string{
	"token": "sallyctl tokens ls", "provision_token": "sallyctl tokens ls",
	"node": "sallyctl nodes ls", "agent": "sallyctl nodes ls", "gateway": "sallyctl nodes ls", "proxy": "sallyctl nodes ls", "instance": "sallyctl nodes ls",
	"app": resources, "app_server": resources, "db": resources, "database": resources, "db_server": resources,
	"kube_cluster": resources, "kube_server": resources, "kubernetes_cluster": resources, "kube": resources,
	"windows_desktop": "this version serves no desktops", "windows_desktop_service": "this version serves no desktops",
	"cluster_auth_preference": settings, "cap": settings, "cluster_networking_config": settings, "netconfig": settings,
	"session_recording_config": settings, "src": settings, "recording_config": settings, "cluster_audit_config": settings,
	"connector": connectors, "saml": connectors, "oidc": connectors, "github": connectors, "saml_connector": connectors, "oidc_connector": connectors,
	"cert_authority": "sallyctl auth export", "cert_authorities": "sallyctl auth export", "ca": "sallyctl auth export",
	"trusted_cluster": "this version has one cluster", "remote_cluster": "this version has one cluster", "tc": "this version has one cluster", "rc": "this version has one cluster",
	"access_request": "this version has no access requests", "access_list": "this version has no access lists", "bot": "this version has no bots", "device": "this version has no trusted devices",
}

const (
	resources  = "what an agent serves is in its configuration (docs/config.md); sally ls, sally db ls, sally apps ls and sally kube ls show it"
	settings   = "this is in the configuration of auth and the gateways: docs/config.md"
	connectors = "this version has local users only"
)

// documentKind understands a kind, also in the plural, as tctl does.
func documentKind(word string) (string, error) {
	word = strings.ToLower(word)
	for _, k := range kinds {
		if word == k || word == k+"s" {
			return k, nil
		}
	}
	p := &sallyport.Problem{Kind: sallyport.ErrInvalid, Fact: fmt.Sprintf("there are no documents of kind %q", word), Hint: "kinds: " + strings.Join(kinds, ", ")}
	for _, singular := range []string{word, strings.TrimSuffix(word, "s"), strings.TrimSuffix(word, "es")} {
		if hint, ok := elsewhere[singular]; ok {
			p.Hint = hint
			break
		}
	}
	return "", p
}

// wanted is one document, or all of a kind.
type wanted struct{ kind, name string }

// wants reads KIND, KIND/NAME, all, and lists of these with commas.
func wants(text string) ([]wanted, error) {
	var out []wanted
	for one := range strings.SplitSeq(text, ",") {
		if strings.EqualFold(one, "all") {
			for _, k := range kinds {
				out = append(out, wanted{kind: k})
			}
			continue
		}
		word, name, _ := strings.Cut(one, "/")
		kind, err := documentKind(word)
		if err != nil {
			return nil, err
		}
		out = append(out, wanted{kind, name})
	}
	return out, nil
}
