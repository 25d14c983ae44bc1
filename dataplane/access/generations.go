package access

// generation is how many values one half of a cache holds.
const generation = 4096

// generations keeps values in two halves: a full one becomes the old one, and
// the old one is forgotten. Values in use move over. The zero value is empty;
// its user has the mutex.
type generations[K comparable, V any] struct{ new, old map[K]V }

func (g *generations[K, V]) get(k K) (V, bool) {
	if v, ok := g.new[k]; ok {
		return v, true
	}
	v, ok := g.old[k]
	if ok {
		g.put(k, v)
	}
	return v, ok
}

func (g *generations[K, V]) put(k K, v V) {
	if g.new == nil || len(g.new) >= generation {
		g.new, g.old = make(map[K]V), g.new
	}
	g.new[k] = v
}
