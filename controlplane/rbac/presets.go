package rbac

import "fmt"

// presetAccess reaches everything as what the user's traits say.
const presetAccess = `
kind: role
version: v7
metadata:
  name: access
  description: Access cluster resources
  labels: {sallyport.dev/preset: "true"}
spec:
  options:
    max_session_ttl: 30h
    forward_agent: true
    ssh_file_copy: true
    permit_x11_forwarding: false
    disconnect_expired_cert: false
    record_session: {default: best_effort, desktop: true}
    enhanced_recording: [command, network]
  allow:
    logins: ['{{internal.logins}}']
    node_labels: {'*': '*'}
    app_labels: {'*': '*'}
    db_labels: {'*': '*'}
    db_users: ['{{internal.db_users}}']
    db_names: ['{{internal.db_names}}']
    db_roles: ['{{internal.db_roles}}']
    aws_role_arns: ['{{internal.aws_role_arns}}']
    kubernetes_labels: {'*': '*'}
    kubernetes_groups: ['{{internal.kubernetes_groups}}']
    kubernetes_users: ['{{internal.kubernetes_users}}']
    kubernetes_resources: [{kind: '*', namespace: '*', name: '*', verbs: ['*']}]
    windows_desktop_labels: {'*': '*'}
    windows_desktop_logins: ['{{internal.windows_logins}}']
    rules:
      - {resources: [event], verbs: [list, read]}
      - {resources: [session], verbs: [list, read], where: 'contains(session.participants, user.metadata.name)'}
`

// presetEditor changes the configuration, and so everything else indirectly.
const presetEditor = `
kind: role
version: v7
metadata:
  name: editor
  description: Edit cluster configuration
  labels: {sallyport.dev/preset: "true"}
spec:
  options:
    max_session_ttl: 30h
    forward_agent: true
  allow:
    rules:
      - resources: [user, role, token, lock, oidc, saml, github, auth_connector, trusted_cluster, remote_cluster, bot,
          cluster_audit_config, cluster_auth_preference, cluster_name, cluster_networking_config,
          session_recording_config, ui_config, login_rule, installer, device, node, app, app_server, db, db_server, tcp,
          kube_cluster, kube_server, windows_desktop, windows_desktop_service, agent, gateway, status]
        verbs: [list, create, read, update, delete]
      - {resources: [cert_authority], verbs: [list, create, readnosecrets, rotate]}
      - {resources: [session_tracker, access_request, event], verbs: [list, read]}
`

// presetAuditor reads what happened.
const presetAuditor = `
kind: role
version: v7
metadata:
  name: auditor
  description: Review cluster events and replay sessions
  labels: {sallyport.dev/preset: "true"}
spec:
  options:
    max_session_ttl: 30h
  allow:
    rules:
      - {resources: [session, event, session_tracker, cluster_audit_config, status, agent], verbs: [list, read]}
`

// Presets returns the roles that every new cluster has.
func Presets() []*Role {
	var out []*Role
	for _, doc := range []string{presetAccess, presetEditor, presetAuditor} {
		r, _, err := ParseRole([]byte(doc))
		if err != nil {
			panic(fmt.Sprintf("rbac: preset: %v", err))
		}
		out = append(out, r)
	}
	return out
}
