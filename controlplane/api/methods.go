package api

import (
	"strings"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/wire/sallyport/v1/sallyportv1connect"
)

// audience is a set of sorts of callers.
type audience uint8

const (
	nobody       audience = 1 << iota // no certificate: by sallyport-join/1
	user                              // a person's certificate
	agent                             // an agent's host certificate
	gateway                           // a gateway's host certificate
	webVisitor                        // anybody, by way of a gateway's web origin
	localAdmin                        // the admin socket
	endedHost                         // an agent's or gateway's host certificate that has ended
	anyCaller    = user | agent | gateway | localAdmin
	anyHost      = agent | gateway
	adminOrLocal = user | localAdmin
)

// rule says who may call a method. Users besides need the verb on the kind of
// resource by one of their roles (reference: RBAC, rules on API objects), unless
// kind is empty: then the method itself shows only what the caller may see.
//
// With named the method is about objects that have names: the table refuses who may
// do it with none, and the handler asks by name, with allow or among, before it
// acts or shows. All other methods are judged here alone, for every object.
type rule struct {
	who   audience
	kind  string
	verb  string
	named bool
}

// methods is the whole table. A procedure that is not here is refused.
func methods() map[string]rule {
	return map[string]rule{
		sallyportv1connect.PublicServicePingProcedure:  {who: webVisitor | anyCaller},
		sallyportv1connect.PublicServiceLoginProcedure: {who: webVisitor},

		sallyportv1connect.PublicServiceFinishLoginProcedure:      {who: webVisitor},
		sallyportv1connect.PublicServiceBeginDeviceLoginProcedure: {who: webVisitor},
		sallyportv1connect.PublicServicePollDeviceLoginProcedure:  {who: webVisitor},

		sallyportv1connect.JoinServiceJoinProcedure: {who: nobody},

		sallyportv1connect.HostServiceRenewHostProcedure:                {who: anyHost | endedHost},
		sallyportv1connect.HostServiceAnnounceProcedure:                 {who: agent},
		sallyportv1connect.HostServiceIssueDatabaseCertificateProcedure: {who: agent},
		sallyportv1connect.HostServiceIssueAppTokenProcedure:            {who: agent},
		sallyportv1connect.HostServiceWatchSnapshotProcedure:            {who: anyHost},
		sallyportv1connect.HostServiceAppendEventsProcedure:             {who: anyHost},
		sallyportv1connect.HostServiceReportPresenceProcedure:           {who: gateway},
		sallyportv1connect.HostServiceRedeemAppCodeProcedure:            {who: gateway},
		sallyportv1connect.HostServiceRenewAppSessionProcedure:          {who: gateway},
		sallyportv1connect.HostServiceEndAppSessionProcedure:            {who: gateway},

		sallyportv1connect.AccessServiceWhoAmIProcedure:        {who: user},
		sallyportv1connect.AccessServiceReissueProcedure:       {who: user},
		sallyportv1connect.AccessServiceListResourcesProcedure: {who: user},
		sallyportv1connect.AccessServiceListClustersProcedure:  {who: user},
		sallyportv1connect.AccessServiceExplainProcedure:       {who: user},

		// One's own, and nobody else's.
		sallyportv1connect.AccessServiceListWebSessionsProcedure: {who: user},
		sallyportv1connect.AccessServiceEndWebSessionProcedure:   {who: user},

		sallyportv1connect.AdminServiceGetStatusProcedure:    {who: adminOrLocal, kind: "status", verb: "read"},
		sallyportv1connect.AdminServiceCreateUserProcedure:   {who: adminOrLocal, kind: "user", verb: "create", named: true},
		sallyportv1connect.AdminServiceListUsersProcedure:    {who: adminOrLocal, kind: "user", verb: "list", named: true},
		sallyportv1connect.AdminServiceDeleteUserProcedure:   {who: adminOrLocal, kind: "user", verb: "delete", named: true},
		sallyportv1connect.AdminServiceResetUserProcedure:    {who: adminOrLocal, kind: "user", verb: "update", named: true},
		sallyportv1connect.AdminServiceCreateTokenProcedure:  {who: adminOrLocal, kind: "token", verb: "create", named: true},
		sallyportv1connect.AdminServiceListTokensProcedure:   {who: adminOrLocal, kind: "token", verb: "list", named: true},
		sallyportv1connect.AdminServiceDeleteTokenProcedure:  {who: adminOrLocal, kind: "token", verb: "delete", named: true},
		sallyportv1connect.AdminServiceSearchEventsProcedure: {who: adminOrLocal, kind: "event", verb: "list"},
		sallyportv1connect.AdminServiceListAgentsProcedure:   {who: adminOrLocal, kind: "agent", verb: "list", named: true},
		sallyportv1connect.AdminServiceRemoveHostProcedure:   {who: adminOrLocal, kind: "agent", verb: "delete", named: true},

		sallyportv1connect.AdminServiceExportAuthoritiesProcedure:  {who: adminOrLocal, kind: "cert_authority", verb: "readnosecrets"},
		sallyportv1connect.AdminServiceSignDatabaseServerProcedure: {who: adminOrLocal, kind: "cert_authority", verb: "create"},

		// Documents are of many kinds: the handler checks the verb on the
		// document's own kind, by its name, before it does anything.
		sallyportv1connect.AdminServiceGetDocumentsProcedure:   {who: adminOrLocal, kind: ofDocument, verb: "read", named: true},
		sallyportv1connect.AdminServicePutDocumentProcedure:    {who: adminOrLocal, kind: ofDocument, verb: "create", named: true},
		sallyportv1connect.AdminServiceDeleteDocumentProcedure: {who: adminOrLocal, kind: ofDocument, verb: "delete", named: true},
	}
}

// ofDocument stands for the kind that the request names.
const ofDocument = "(the document's kind)"

// audienceOf says what sort of caller this is.
func audienceOf(c Caller) audience {
	switch {
	case c.Web:
		return webVisitor
	case c.EndedKey != nil:
		return endedHost
	case c.Identity.Kind == sallyport.KindUser:
		return user
	case c.Identity.Kind == sallyport.KindAgent:
		return agent
	case c.Identity.Kind == sallyport.KindGateway:
		return gateway
	case c.Identity.Kind == sallyport.KindLocalAdmin:
		return localAdmin
	default:
		return nobody
	}
}

// String names an audience in an error. A host whose certificate has ended is told
// so, and is in none.
func (a audience) String() string {
	var out []string
	for _, n := range []struct {
		bit  audience
		name string
	}{{nobody, "strangers who join"}, {user, "users"}, {agent, "agents"}, {gateway, "gateways"}, {webVisitor, "web visitors"}, {localAdmin, "the admin socket"}} {
		if a&n.bit != 0 {
			out = append(out, n.name)
		}
	}
	return strings.Join(out, ", ")
}
