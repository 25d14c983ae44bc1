package rbac

import (
	"fmt"
	"slices"
	"strings"
)

// What Teleport's role documents hold, as far as it is known. A name that is
// known and not listed as enforced concerns something that this version does
// not serve; to deny it or to grant it changes nothing.

// classes are the groups of resources that a restriction concerns.
type classes uint8

const (
	classNode classes = 1 << iota
	classDatabase
	classApp // web and TCP
	classAPI
	classKube
	classAll = classNode | classDatabase | classApp | classAPI | classKube
)

const (
	metadataFields = "name description labels expires namespace id revision"
	specFields     = "options allow deny"

	// conditionFields are the fields of allow and deny that are evaluated.
	conditionFields = "namespaces logins db_users db_names aws_role_arns rules " +
		"node_labels node_labels_expression app_labels app_labels_expression db_labels db_labels_expression " +
		"kubernetes_labels kubernetes_labels_expression kubernetes_groups kubernetes_users kubernetes_resources"

	// unservedFields concern what this version does not serve.
	unservedFields = "windows_desktop_logins desktop_groups " +
		"db_service_labels db_service_labels_expression " +
		"windows_desktop_labels windows_desktop_labels_expression linux_desktop_labels linux_desktop_labels_expression " +
		"linux_desktop_logins cluster_labels cluster_labels_expression group_labels group_labels_expression " +
		"workload_identity_labels workload_identity_labels_expression db_roles db_permissions " +
		"azure_identities gcp_service_accounts host_groups host_sudoers impersonate request review_requests " +
		"join_sessions github_permissions mcp spiffe account_assignments"

	requireJoin = "require_session_join"

	ruleFields = "resources verbs where actions"

	// apiKinds are the kinds of API objects that rules name.
	apiKinds = "* user role node app app_server db db_server database kube_cluster kube_server kube_service tcp agent gateway " +
		"windows_desktop windows_desktop_service linux_desktop dynamic_windows_desktop token join_token oidc saml github connector connectors " +
		"auth_connector trusted_cluster remote_cluster lock access_request access_plugin_data cluster_auth_preference cluster_networking_config " +
		"cluster_name cluster_audit_config session_recording_config cluster_maintenance_config cluster_alert cluster_config ui_config login_rule " +
		"device bot bot_instance access_list access_list_member access_list_review installer discovery_config integration " +
		"saml_idp_service_provider autoupdate_config autoupdate_version autoupdate_agent_rollout autoupdate_agent_report autoupdate_bot_instance_report " +
		"workload_identity workload_identity_x509_revocation workload_identity_x509_issuer_override user_group network_restrictions vnet_config " +
		"git_server health_check_config static_host_user access_monitoring_rule crown_jewel cert_authority namespace plugin plugin_data " +
		"okta_import_rule okta_assignment spiffe_federation event session ssh_session session_tracker web_session web_token app_session snowflake_session " +
		"proxy auth_server tunnel tunnel_connection reverse_tunnel host_cert license download usage billing security_report audit_query " +
		"access_graph access_graph_settings db_service database_object database_object_import_rule notification user_task instance " +
		"identity_center identity_center_account identity_center_account_assignment sigstore_policy kube_waiting_container user_login_state " +
		"user_token mfa_device recovery_codes scoped_role scoped_role_assignment scoped_token contact gateway_status snapshot assignment status inventory document"

	verbs = "* list create read readnosecrets update delete rotate use enroll create_enroll_token"
)

func known(list, name string) bool {
	return slices.Contains(strings.Fields(list), name)
}

// suggest is `; did you mean "x"?`, or nothing when no name is near.
func suggest(name string, names []string) string {
	if near := nearest(name, names); near != "" {
		return fmt.Sprintf("; did you mean %q?", near)
	}
	return ""
}

// nearest finds the known name that a wrong one was probably meant to be.
func nearest(name string, names []string) string {
	if len(name) > 64 {
		return ""
	}
	best, far := "", 1+len(name)/4
	for _, n := range names {
		if d := distance(strings.ToLower(name), n); d <= far && n != "*" {
			best, far = n, d-1
		}
	}
	return best
}

// distance counts the letters to insert, delete, change or swap (optimal
// string alignment).
func distance(a, b string) int {
	rows := make([][]int, len(a)+1)
	for i := range rows {
		rows[i] = make([]int, len(b)+1)
		rows[i][0] = i
	}
	for j := range rows[0] {
		rows[0][j] = j
	}
	for i := 1; i <= len(a); i++ {
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			d := min(rows[i-1][j]+1, rows[i][j-1]+1, rows[i-1][j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				d = min(d, rows[i-2][j-2]+1)
			}
			rows[i][j] = d
		}
	}
	return rows[len(a)][len(b)]
}

// restricts guesses from the name of an unknown field of allow whether it
// narrows what is granted. Only a name that plainly grants is let pass.
func restricts(name string) bool {
	if near := nearest(name, strings.Fields(conditionFields+" "+requireJoin)); near == "namespaces" ||
		near == requireJoin || strings.HasSuffix(near, "_expression") {
		return true
	}
	for _, word := range []string{"require", "deny", "where", "filter", "except", "exclu", "only", "limit", "max", "min",
		"must", "condition", "expression", "restrict", "not_", "block", "expire", "until", "after", "before", "time", "schedule", "mfa", "device"} {
		if strings.Contains(strings.ToLower(name), word) {
			return true
		}
	}
	return false
}
