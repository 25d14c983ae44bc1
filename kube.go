package sallyport

// KubeRequest is one request to a Kubernetes API server, as roles see it. The
// words are those of the API: resources are plural and in lower case.
type KubeRequest struct {
	Verb      string // get list watch create update patch delete deletecollection exec portforward
	Group     string // API group; "" is the core group
	Resource  string // "pods"; "" is a path that names no resource
	Namespace string // "" for what belongs to no namespace, and for all namespaces
	Name      string // "" for collections

	// Whole says that the request concerns more than its words tell, so that
	// only a role that narrows nothing may allow it.
	Whole bool

	// Open says that whoever may reach the cluster may ask this: what it can do,
	// and what the asker may do.
	Open bool
}

// KubeAnswer is what roles say about one request. The zero value denies.
type KubeAnswer struct {
	Allowed bool
	Reason  string // of a denial: a fact, lower case

	// Users and Groups are those that the roles which allow the request give,
	// sorted: the agent acts as them.
	Users, Groups []string

	// Keep says which objects of a collection may be seen, by namespace and
	// name; nil: all of them.
	Keep func(namespace, name string) bool
}

// KubeGrant answers for each request on a Kubernetes cluster that may be
// reached at all. It never changes and may be used by many goroutines.
type KubeGrant interface {
	Ask(r KubeRequest) KubeAnswer
}
