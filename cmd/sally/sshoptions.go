package main

import (
	"fmt"
	"net/url"
	"slices"
	"strings"
)

// What -o can say (ssh_config(5)) and is not among these is obeyed, by sshCmd.options. An
// option that neither knows is an error, as in OpenSSH: a typing error is not to pass for consent.
var (
	// optionsIgnored change how OpenSSH connects, proves who both ends are and prints, and
	// there is one way to do each here, or none: nothing is less safe for leaving them out.
	optionsIgnored = []string{
		"addkeystoagent", "addressfamily", "batchmode", "bindaddress", "bindinterface", "canonicaldomains", "canonicalizefallbacklocal",
		"canonicalizehostname", "canonicalizemaxdots", "canonicalizepermittedcnames", "casignaturealgorithms", "certificatefile", "challengeresponseauthentication",
		"channeltimeout", "checkhostip", "cipher", "ciphers", "compression", "compressionlevel", "connectionattempts", "connecttimeout", "controlpath", "controlpersist",
		"enableescapecommandline", "enablesshkeysign", "exitonforwardfailure", "fingerprinthash", "forwardx11timeout", "globalknownhostsfile",
		"gssapiauthentication", "gssapidelegatecredentials", "gssapikeyexchange", "gssapikexalgorithms", "gssapiclientidentity", "gssapirenewalforcesrekey",
		"gssapiserveridentity", "gssapitrustdns", "hashknownhosts", "hostbasedacceptedalgorithms",
		"hostbasedauthentication", "hostbasedkeytypes", "hostkeyalgorithms", "hostkeyalias", "identitiesonly", "identityagent", "identityfile", "ignoreunknown", "ipqos",
		"kbdinteractiveauthentication", "kbdinteractivedevices", "kexalgorithms", "logverbose", "macs",
		"nohostauthenticationforlocalhost", "numberofpasswordprompts", "obscurekeystroketiming", "passwordauthentication", "permitlocalcommand",
		"pkcs11provider", "port", "preferredauthentications", "protocol", "proxyusefdpass", "pubkeyacceptedalgorithms", "pubkeyacceptedkeytypes", "pubkeyauthentication",
		"refuseconnection", "rekeylimit", "requiredrsasize", "securitykeyprovider", "sendenv", "serveralivecountmax", "serveraliveinterval", "setenv", "streamlocalbindmask",
		"streamlocalbindunlink", "stricthostkeychecking", "syslogfacility", "tag", "tcpkeepalive", "updatehostkeys", "usekeychain", "useprivilegedport", "userknownhostsfile",
		"verifyhostkeydns", "versionaddendum", "visualhostkey", "warnweakcrypto", "xauthlocation",
	}
	// optionsOff are served in no other way than these.
	optionsOff = map[string][]string{
		"forwardx11": {"no"}, "forwardx11trusted": {"no"}, "tunnel": {"no"}, "tunneldevice": {"any:any"}, "gatewayports": {"no"},
		"permitremoteopen": {"any"}, "revokedhostkeys": {"none"}, "knownhostscommand": {"none"},
	}
	// optionsOfOpenSSH are those for which OpenSSH itself is the way.
	optionsOfOpenSSH = []string{"proxycommand", "proxyjump", "localcommand", "remotecommand", "controlmaster", "forkafterauthentication"}
)

// option splits KEY=VALUE, or KEY VALUE; the key in lower case.
func option(o string) (key, value string, ok bool) {
	o = strings.TrimSpace(o)
	i := strings.IndexAny(o, "= \t")
	if i <= 0 {
		return "", "", false
	}
	value = strings.TrimSpace(o[i:])
	value = strings.TrimSpace(strings.TrimPrefix(value, "="))
	return strings.ToLower(o[:i]), value, true
}

// checkOption refuses what this version does not do, rather than doing something else than
// was asked for; it reports whether there is nothing to obey either.
func checkOption(o string) (done bool, err error) {
	k, v, ok := option(o)
	if !ok {
		return false, problem(errInvalid, fmt.Sprintf("-o %q is not KEY=VALUE", o), "for example -o SendEnv=LANG")
	}
	v = strings.ToLower(v)
	switch off := optionsOff[k]; {
	case slices.Contains(optionsIgnored, k):
		return true, nil
	case off != nil:
		if !slices.Contains(off, v) {
			return false, problem(errInvalid, "this version does not serve -o "+o, "leave it out")
		}
		return true, nil
	case slices.Contains(optionsOfOpenSSH, k):
		if v != "none" && v != "no" {
			return false, problem(errInvalid, "this version does not serve -o "+o, "OpenSSH does: sally config >> ~/.ssh/config")
		}
		return true, nil
	case k == "hostname":
		return false, problem(errInvalid, "this version does not serve -o "+o, "name the node itself, as sally ls shows it")
	}
	return false, nil
}

// unknownOption is for one that OpenSSH does not know either.
func unknownOption(o string) error {
	return problem(errInvalid, fmt.Sprintf("-o %q is no option that is known here", o), "man ssh_config has their names; leave it out")
}

// sshUser obeys -o User, which names the login unless the command line does otherwise.
func (p *program) sshUser(options []string) {
	for _, o := range options {
		if k, v, _ := option(o); k == "user" && p.LoginName == "" {
			p.LoginName = v
		}
	}
}

// checkConfigFile refuses another configuration than none: -F FILE could say anything.
func checkConfigFile(file string) error {
	switch file {
	case "", "none", "/dev/null":
		return nil
	}
	return problem(errInvalid, "this version reads no configuration of OpenSSH", "leave out -F, or use OpenSSH itself: sally config >> ~/.ssh/config")
}

// uri reads scheme://[user@]host[:port][/path] as ssh(1) and scp(1) do: the path begins behind
// the slash, in the login's home. The port is the gateway's business.
func uri(scheme, arg string) (host, path string, ok bool) {
	rest, found := strings.CutPrefix(arg, scheme+"://")
	if !found {
		return "", "", false
	}
	authority, path, _ := strings.Cut(rest, "/")
	login := ""
	if at := strings.LastIndex(authority, "@"); at >= 0 {
		login, authority = authority[:at+1], authority[at+1:]
	}
	host, port := authority, ""
	if parts, split := splitForward(authority); split && len(parts) <= 2 {
		host = parts[0]
		port = strings.Join(parts[1:], "")
	}
	login, badLogin := url.PathUnescape(login)
	path, badPath := url.PathUnescape(path)
	if host == "" || port != "" && !isPort(port, 1) || badLogin != nil || badPath != nil {
		return "", "", false
	}
	return login + host, path, true
}
