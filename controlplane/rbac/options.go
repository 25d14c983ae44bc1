package rbac

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/sallyport/sallyport"
)

// defaultSessionTTL is the longest session that roles give when they say nothing.
const defaultSessionTTL = 30 * time.Hour

// options are those of one role. A nil pointer is not said.
type options struct {
	maxSessionTTL     time.Duration // 0: not said
	clientIdleTimeout time.Duration
	disconnectExpired bool
	maxSessions       int64
	forwardAgent      bool
	portForwarding    *bool // the old form, both directions
	localForwarding   *bool // ssh_port_forwarding.local.enabled
	remoteForwarding  *bool
	x11               bool
	fileCopy          *bool
	strictLock        bool
	pinSourceIP       bool
}

// unservedOptions concern what this version does not serve, grant something
// that is not granted here, or only change how things look.
const unservedOptions = "mfa_verification_interval desktop_clipboard desktop_directory_sharing " +
	"create_desktop_user cert_extensions cert_format create_host_user create_host_user_mode create_host_user_default_shell " +
	"create_db_user create_db_user_mode idp request_prompt session_recording_mode"

// grantingOptions are those of unservedOptions whose loss somebody may notice.
const grantingOptions = "cert_extensions create_host_user_mode create_db_user create_db_user_mode create_host_user"

const optionFields = "max_session_ttl client_idle_timeout disconnect_expired_cert max_sessions forward_agent port_forwarding " +
	"ssh_port_forwarding permit_x11_forwarding ssh_file_copy lock pin_source_ip max_connections max_kubernetes_connections enhanced_recording " +
	"device_trust_mode require_session_mfa request_access record_session " + unservedOptions

// options decodes spec.options.
func (d *decoder) options(n *node) {
	if n == nil {
		return
	}
	o := &d.role.options
	o.maxSessionTTL = d.duration(n, "max_session_ttl")
	o.clientIdleTimeout = d.duration(n, "client_idle_timeout")
	o.disconnectExpired = d.isTrue(n, "disconnect_expired_cert")
	o.maxSessions = d.count(n, "max_sessions")
	o.forwardAgent = d.isTrue(n, "forward_agent")
	o.portForwarding = d.boolean(n, "port_forwarding")
	o.x11 = d.isTrue(n, "permit_x11_forwarding")
	o.fileCopy = d.boolean(n, "ssh_file_copy")
	o.pinSourceIP = d.isTrue(n, "pin_source_ip")
	switch lock := d.text(n, "lock"); lock {
	case "", "best_effort":
	case "strict":
		o.strictLock = true
	default:
		d.fail(n.get("lock"), "lock is strict or best_effort, not %q", clean(lock))
	}
	d.forwarding(d.section(n, "ssh_port_forwarding"))
	d.demands(n)
	d.optionNames(n)
}

// forwarding decodes ssh_port_forwarding: {local: {enabled}, remote: {enabled}}.
func (d *decoder) forwarding(n *node) {
	if n == nil {
		return
	}
	for _, e := range n.entries {
		way := d.section(n, e.key)
		switch {
		case e.key == "local":
			d.role.options.localForwarding = d.boolean(way, "enabled")
		case e.key == "remote":
			d.role.options.remoteForwarding = d.boolean(way, "enabled")
		default:
			d.unknownOption("ssh_port_forwarding."+e.key, []string{"local", "remote"}, classNode)
		}
		if way == nil {
			continue
		}
		for _, inner := range way.entries {
			if inner.key != "enabled" {
				d.unknownOption("ssh_port_forwarding."+e.key+"."+inner.key, []string{"enabled"}, classNode)
			}
		}
	}
}

func (d *decoder) unknownOption(name string, names []string, c classes) {
	last := name[strings.LastIndexByte(name, '.')+1:]
	d.flaw(flaw{path: "spec.options." + clean(name), why: "this version does not know it" + suggest(last, names), classes: c})
}

// demands finds the options that restrict and are not enforced.
func (d *decoder) demands(n *node) {
	flaw := func(option, why string, c classes, matching bool) {
		d.flaw(flaw{path: "spec.options." + option, why: why, classes: c, matching: matching})
	}
	if d.count(n, "max_connections") > 0 {
		flaw("max_connections", "the number of connections is not limited by this version", classNode, false)
	}
	if d.count(n, "max_kubernetes_connections") > 0 {
		flaw("max_kubernetes_connections", "the number of connections is not limited by this version", classKube, false)
	}
	switch v := d.text(n, "require_session_mfa"); v {
	case "", "no", "false", "off", "0":
	default:
		flaw("require_session_mfa", "this version cannot verify MFA for each session", classNode|classApp|classDatabase|classKube, true)
	}
	switch v := d.text(n, "device_trust_mode"); v {
	case "", "off", "optional":
	default:
		flaw("device_trust_mode", "this version cannot verify devices", classNode|classApp|classDatabase|classKube, true)
	}
	switch v := d.text(n, "request_access"); v {
	case "", "optional":
	default:
		flaw("request_access", "this version has no access requests, which the role makes necessary", classAll, false)
	}
	for _, e := range d.strings(n, "enhanced_recording") {
		if e.text == "command" || e.text == "network" {
			continue // Teleport's default, in force only on nodes that are set up for it
		}
		flaw("enhanced_recording", fmt.Sprintf("%q is not recorded by this version", clean(e.text)), classNode, false)
		break
	}
	d.recording(d.section(n, "record_session"))
}

// recording: a session that must be recorded strictly is not started when it
// cannot be recorded.
func (d *decoder) recording(n *node) {
	if n == nil {
		return
	}
	for _, e := range n.entries {
		switch {
		case e.key == "desktop" || e.value.shape == null:
		case e.key != "default" && e.key != "ssh":
			d.unknownOption("record_session."+e.key, []string{"default", "ssh", "desktop"}, classNode)
		case d.text(n, e.key) == "best_effort" || d.text(n, e.key) == "":
		case d.text(n, e.key) == "strict":
			concerned := classNode
			if e.key == "default" {
				concerned |= classKube
			}
			d.flaw(flaw{path: "spec.options.record_session." + e.key, classes: concerned,
				why: "this version records no sessions, so it cannot do so strictly"})
		default:
			d.fail(e.value, "record_session.%s is strict or best_effort, not %q", clean(e.key), clean(e.value.text))
		}
	}
}

func (d *decoder) optionNames(n *node) {
	for _, e := range n.entries {
		switch {
		case !known(optionFields, e.key):
			if e.value.shape != null {
				d.unknownOption(e.key, strings.Fields(optionFields), classAll)
			}
		case known(grantingOptions, e.key) && !empty(e.value) && e.value.text != "off" && e.value.text != "false":
			d.warn(e.line, e.column, "spec.options."+e.key, "it has no effect in this version")
		}
	}
}

// boolean returns a field that is true or false, or nil.
func (d *decoder) boolean(n *node, key string) *bool {
	v := n.get(key)
	if v == nil {
		return nil
	}
	yes, no := true, false
	switch strings.ToLower(d.text(n, key)) {
	case "true", "yes", "on":
		return &yes
	case "false", "no", "off":
		return &no
	}
	d.fail(v, "%s is true or false, not %q", key, clean(v.text))
	return nil
}

func (d *decoder) isTrue(n *node, key string) bool {
	v := d.boolean(n, key)
	return v != nil && *v
}

// duration returns a length of time like 8h30m; "" and never are 0.
func (d *decoder) duration(n *node, key string) time.Duration {
	text := d.text(n, key)
	if text == "" || text == "0" || text == "never" {
		return 0
	}
	v, err := time.ParseDuration(text)
	if err != nil {
		d.fail(n.get(key), "%s is a length of time like 8h30m, not %q", key, clean(text))
		return 0
	}
	if v < 0 {
		d.fail(n.get(key), "%s is negative", key)
	}
	return v
}

// count returns a whole number that is not negative.
func (d *decoder) count(n *node, key string) int64 {
	text := d.text(n, key)
	if text == "" {
		return 0
	}
	v, err := strconv.ParseInt(text, 10, 64)
	if err != nil || v < 0 {
		d.fail(n.get(key), "%s is a whole number, not %q", key, clean(text))
		return 0
	}
	n.get(key).literal = strconv.FormatInt(v, 10) // also when it came in quotes
	return v
}

// merge joins the options of all roles that somebody holds: what limits is the
// strictest, what permits is permitted by any.
func merge(roles []*Role) sallyport.Options {
	out := sallyport.Options{MaxSessionTTL: defaultSessionTTL, FileCopy: true}
	if len(roles) == 0 {
		return sallyport.Options{}
	}
	var local, remote direction
	idle, sessions := time.Duration(math.MaxInt64), int64(math.MaxInt64)
	for _, r := range roles {
		o := &r.options
		if o.maxSessionTTL > 0 {
			out.MaxSessionTTL = min(out.MaxSessionTTL, o.maxSessionTTL)
		}
		if o.clientIdleTimeout > 0 {
			idle = min(idle, o.clientIdleTimeout)
		}
		if o.maxSessions > 0 {
			sessions = min(sessions, o.maxSessions)
		}
		out.DisconnectExpiredCert = out.DisconnectExpiredCert || o.disconnectExpired
		out.ForwardAgent = out.ForwardAgent || o.forwardAgent
		out.X11Forwarding = out.X11Forwarding || o.x11
		out.FileCopy = out.FileCopy && (o.fileCopy == nil || *o.fileCopy)
		out.StrictLock = out.StrictLock || o.strictLock
		newForm := o.localForwarding != nil || o.remoteForwarding != nil
		local.add(o.localForwarding, o.portForwarding, newForm)
		remote.add(o.remoteForwarding, o.portForwarding, newForm)
	}
	if idle != math.MaxInt64 {
		out.ClientIdleTimeout = idle
	}
	if sessions != math.MaxInt64 {
		out.MaxSessions = sessions
	}
	out.PortForwardLocal, out.PortForwardRemote = local.open(), remote.open()
	return out
}

// direction collects what roles say about forwarding ports one way. The new
// form's no is final; the old form's no gives way to any yes; silence is yes.
type direction struct{ yes, no, oldNo bool }

func (d *direction) add(now, old *bool, newForm bool) {
	switch {
	case now != nil && *now:
		d.yes = true
	case now != nil:
		d.no = true
	case old != nil && !newForm && *old:
		d.yes = true
	case old != nil && !newForm:
		d.oldNo = true
	}
}

func (d *direction) open() bool { return !d.no && (d.yes || !d.oldNo) }
