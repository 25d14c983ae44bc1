package audit

// Names and codes of the events that the control plane itself makes, as
// Teleport has them (SA… are ours). A code is a prefix, a number and how it
// ended: I as wished, W refused, E failed.
const (
	UserLogin            = "user.login"
	UserLoginCode        = "T1000I"
	UserLoginFailureCode = "T1000W"

	WebSessionEnd     = "web_session.end" // a browser was logged out; not when it was idle for long
	WebSessionEndCode = "SA030I"

	UserCreate     = "user.create"
	UserCreateCode = "T1002I"
	UserUpdate     = "user.update"
	UserUpdateCode = "T1003I"
	UserDelete     = "user.delete"
	UserDeleteCode = "T1004I"

	UserPasswordChange     = "user.password_change"
	UserPasswordChangeCode = "T1005I"

	MFAAdd     = "mfa.add"
	MFAAddCode = "T1006I"

	ResetPasswordTokenCreate     = "reset_password_token.create"
	ResetPasswordTokenCreateCode = "T6000I"

	RoleCreate     = "role.created"
	RoleCreateCode = "T9000I"
	RoleDelete     = "role.deleted"
	RoleDeleteCode = "T9001I"
	RoleUpdate     = "role.updated"
	RoleUpdateCode = "T9002I"

	JoinTokenCreate     = "join_token.create"
	JoinTokenCreateCode = "TJT00I"
	JoinTokenDelete     = "join_token.delete"
	JoinTokenDeleteCode = "SA010I"

	InstanceJoin            = "instance.join"
	InstanceJoinCode        = "TJ002I"
	InstanceJoinFailureCode = "TJ002E"
	InstanceRemove          = "instance.remove" // an agent or a gateway was removed
	InstanceRemoveCode      = "SA011I"
	InstanceAssign          = "instance.assign" // what an agent serves has changed: names that are new, have changed, or are given up
	InstanceAssignCode      = "SA012I"

	LockCreate     = "lock.created"
	LockCreateCode = "TLK00I"
	LockDelete     = "lock.deleted"
	LockDeleteCode = "TLK01I"

	CertificateCreate     = "cert.create"
	CertificateCreateCode = "TC000I"

	AuthAttempt            = "auth"
	AuthAttemptFailureCode = "T3007W"

	AccessDenied     = "access.denied" // a call of the API that a role does not allow
	AccessDeniedCode = "SA020W"

	// About the audit log itself.
	AuditStopped        = "audit.stopped" // the spool is full or cannot be written
	AuditStoppedCode    = "SA001E"
	AuditResumed        = "audit.resumed"
	AuditResumedCode    = "SA001I"
	AuditRecovered      = "audit.recovered" // an unfinished or damaged end was cut at start
	AuditRecoveredCode  = "SA002W"
	AuditUnreadable     = "audit.unreadable" // a line from a host that is no event
	AuditUnreadableCode = "SA003W"
	AuditGap            = "audit.gap" // events of a spool are not in this log: it was restored, or they are in another one
	AuditGapCode        = "SA004W"
	AuditForgotten      = "audit.forgotten" // spools that the log holds no number of any more: there were too many
	AuditForgottenCode  = "SA006W"
	AuditOpened         = "audit.opened" // the control plane has started
	AuditOpenedCode     = "SA005I"
)

// Kind is one row of the table of events.
type Kind struct{ Name, Code string }

// Kinds returns the table of events that the control plane makes.
func Kinds() []Kind {
	return []Kind{
		{UserLogin, UserLoginCode}, {UserLogin, UserLoginFailureCode},
		{WebSessionEnd, WebSessionEndCode},
		{UserCreate, UserCreateCode}, {UserUpdate, UserUpdateCode}, {UserDelete, UserDeleteCode},
		{UserPasswordChange, UserPasswordChangeCode},
		{MFAAdd, MFAAddCode},
		{ResetPasswordTokenCreate, ResetPasswordTokenCreateCode},
		{RoleCreate, RoleCreateCode}, {RoleDelete, RoleDeleteCode}, {RoleUpdate, RoleUpdateCode},
		{JoinTokenCreate, JoinTokenCreateCode}, {JoinTokenDelete, JoinTokenDeleteCode},
		{InstanceJoin, InstanceJoinCode}, {InstanceJoin, InstanceJoinFailureCode}, {InstanceRemove, InstanceRemoveCode}, {InstanceAssign, InstanceAssignCode},
		{LockCreate, LockCreateCode}, {LockDelete, LockDeleteCode},
		{CertificateCreate, CertificateCreateCode},
		{AuthAttempt, AuthAttemptFailureCode},
		{AccessDenied, AccessDeniedCode},
		{AuditStopped, AuditStoppedCode}, {AuditResumed, AuditResumedCode},
		{AuditRecovered, AuditRecoveredCode}, {AuditUnreadable, AuditUnreadableCode},
		{AuditGap, AuditGapCode}, {AuditForgotten, AuditForgottenCode}, {AuditOpened, AuditOpenedCode},
	}
}
