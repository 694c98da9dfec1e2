// Package sanity holds what the suite cannot ask, or asks wrongly, in the client library that orchestrators use.
package sanity

import (
	"context"
	"os"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/proto"
)

func connect(t *testing.T, variable string, options ...grpc.DialOption) *grpc.ClientConn {
	t.Helper()
	endpoint := os.Getenv(variable)
	if endpoint == "" {
		t.Fatalf("%s must name the driver's socket: run this through csi-sanity/run", variable)
	}
	options = append(options, grpc.WithTransportCredentials(insecure.NewCredentials()))
	connection, err := grpc.NewClient(endpoint, options...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { connection.Close() })
	return connection
}

func deadline(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// TestSnapshotTopology is the suite's "should succeed when creating a snapshot with accessibility requirements",
// which compares messages field by field, the cache of their encoded size included, and so fails for every driver
// that reports a topology. Here they are compared as messages.
func TestSnapshotTopology(t *testing.T) {
	ctx := deadline(t)
	controller := csi.NewControllerClient(connect(t, "CONTROLLER_ENDPOINT"))
	node := csi.NewNodeClient(connect(t, "NODE_ENDPOINT"))
	info, err := node.NodeGetInfo(ctx, &csi.NodeGetInfoRequest{})
	if err != nil {
		t.Fatal(err)
	}
	here := []*csi.Topology{info.GetAccessibleTopology()}
	capability := &csi.VolumeCapability{
		AccessType: &csi.VolumeCapability_Block{Block: &csi.VolumeCapability_BlockVolume{}},
		AccessMode: &csi.VolumeCapability_AccessMode{Mode: csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER},
	}
	volume, err := controller.CreateVolume(ctx, &csi.CreateVolumeRequest{
		Name:                      "extra-topology",
		VolumeCapabilities:        []*csi.VolumeCapability{capability},
		CapacityRange:             &csi.CapacityRange{RequiredBytes: 1 << 20},
		AccessibilityRequirements: &csi.TopologyRequirement{Requisite: here},
	})
	if err != nil {
		t.Fatal(err)
	}
	id := volume.GetVolume().GetVolumeId()
	t.Cleanup(func() {
		if _, err := controller.DeleteVolume(ctx, &csi.DeleteVolumeRequest{VolumeId: id}); err != nil {
			t.Error(err)
		}
	})
	snapshot, err := controller.CreateSnapshot(ctx, &csi.CreateSnapshotRequest{
		Name:                      "extra-topology",
		SourceVolumeId:            id,
		AccessibilityRequirements: &csi.TopologyRequirement{Requisite: here, Preferred: here},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		request := &csi.DeleteSnapshotRequest{SnapshotId: snapshot.GetSnapshot().GetSnapshotId()}
		if _, err := controller.DeleteSnapshot(ctx, request); err != nil {
			t.Error(err)
		}
	})
	reported := snapshot.GetSnapshot().GetAccessibleTopology()
	if len(reported) != 1 || !proto.Equal(reported[0], here[0]) {
		t.Fatalf("the snapshot is at %v, the node at %v", reported, here)
	}
}

// TestAuthority shows which names of the server a client may send: those of every current orchestrator.
func TestAuthority(t *testing.T) {
	for _, authority := range []string{"", "localhost", "lagan.csi", "x"} {
		var options []grpc.DialOption
		if authority != "" {
			options = append(options, grpc.WithAuthority(authority))
		}
		identity := csi.NewIdentityClient(connect(t, "CONTROLLER_ENDPOINT", options...))
		if _, err := identity.Probe(deadline(t), &csi.ProbeRequest{}); err != nil {
			t.Errorf("authority %q: %v", authority, err)
		}
	}
	// The socket's path, as kubelets before 1.26 and some C clients send it, is no authority by RFC 3986, and the
	// HTTP/2 library refuses it (hyperium/h2#487). Whoever mends that will see this fail.
	path := csi.NewIdentityClient(connect(t, "CONTROLLER_ENDPOINT", grpc.WithAuthority("/run/csi.sock")))
	if _, err := path.Probe(deadline(t), &csi.ProbeRequest{}); err == nil {
		t.Error("a path is taken as authority now: docs/troubleshooting.md says that it is not")
	}
}
