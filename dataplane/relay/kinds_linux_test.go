package relay

// kinds are the implementations that the suites run on.
func kinds() map[string]func() (Loop, error) {
	return map[string]func() (Loop, error){"epoll": NewEpoll, "batched": NewBatched, "portable": NewPortable}
}
