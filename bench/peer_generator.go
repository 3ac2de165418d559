//go:build linux

package bench

import "context"

// generatorPeer drops everything at the node's door, so that what is measured is the
// generator alone.
type generatorPeer struct{}

func (generatorPeer) Name() string { return "generator" }
func (generatorPeer) About() string {
	return "all dropped at the node's door: what sending costs by itself"
}
func (generatorPeer) Translates() bool                     { return false }
func (generatorPeer) Prepare(context.Context, *Site) error { return nil }

func (generatorPeer) Start(_ context.Context, s *Site) (Instance, error) {
	t := &tap{site: s, objs: new(trafficObjects)}
	if err := loadTrafficObjects(t.objs, nil); err != nil {
		return nil, err
	}
	t.undo = append(t.undo, t.objs.Close)
	if err := t.cutOff(); err != nil {
		t.close()
		return nil, err
	}
	return generatorInstance{t}, nil
}

type generatorInstance struct{ tap *tap }

func (generatorInstance) Granted() []string {
	return []string{"tcx ingress drop on the client's host end"}
}

func (i generatorInstance) Stop() error {
	i.tap.close()
	return nil
}
