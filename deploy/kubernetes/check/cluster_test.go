package main

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"testing"

	"helm.sh/helm/v4/pkg/chart/common"
	chart "helm.sh/helm/v4/pkg/chart/v2"
	"helm.sh/helm/v4/pkg/engine"
	core "k8s.io/api/core/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/dynamic/fake"
	"k8s.io/client-go/kubernetes/scheme"
)

// A cluster that a chart looks into: nodes, and the Secrets that it made before.
type cluster struct{ client dynamic.Interface }

func (c cluster) GetClientFor(version, kind string) (dynamic.NamespaceableResourceInterface, bool, error) {
	resource := map[string]string{"Node": "nodes", "Secret": "secrets"}[kind]
	return c.client.Resource(schema.GroupVersionResource{Version: version, Resource: resource}), kind != "Node", nil
}

func node(name string, labels map[string]string) *core.Node {
	return &core.Node{ObjectMeta: meta.ObjectMeta{Name: name, Labels: labels}}
}

// secretsIn gives what an installation or upgrade makes in a cluster with these objects in it.
func secretsIn(t *testing.T, values string, there ...runtime.Object) map[string]*core.Secret {
	t.Helper()
	in := cluster{fake.NewSimpleDynamicClient(scheme.Scheme, there...)}
	texts, err := renderBy(valuesOf(t, values), func(loaded *chart.Chart, all common.Values) (map[string]string, error) {
		return engine.RenderWithClientProvider(loaded, all, in)
	})
	if err != nil {
		t.Fatal(err)
	}
	return of[*core.Secret](decoded(t, texts))
}

func parsed(t *testing.T, text []byte) *x509.Certificate {
	t.Helper()
	block, _ := pem.Decode(text)
	if block == nil {
		t.Fatalf("no certificate: %q", text)
	}
	found, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// signed checks that one is good for its name, at both ends of a connection.
func signed(t *testing.T, authority, certificate []byte, name string) {
	t.Helper()
	roots := x509.NewCertPool()
	roots.AddCert(parsed(t, authority))
	for _, usage := range []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth} {
		options := x509.VerifyOptions{Roots: roots, DNSName: name, KeyUsages: []x509.ExtKeyUsage{usage}}
		if _, err := parsed(t, certificate).Verify(options); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if names := parsed(t, certificate).DNSNames; len(names) != 1 {
		t.Errorf("%v", names)
	}
}

func TestAnUpgradeKeepsCertificates(t *testing.T) {
	n1, n2 := node("n1", nil), node("n2.example.org", nil)
	first := secretsIn(t, `{}`, n1, n2)
	authority, hosts, router := first["lagan-authority"], first["lagan-host-certificates"], first["lagan-router-certificate"]
	signed(t, authority.Data["ca.crt"], hosts.Data["host-n1.crt"], "n1.host.lagan")
	signed(t, authority.Data["ca.crt"], hosts.Data["host-n2.example.org.crt"], "n2.example.org.host.lagan")
	signed(t, authority.Data["ca.crt"], router.Data["router.crt"], "router.lagan")
	// A node comes, another goes.
	again := secretsIn(t, `{}`, n1, node("n3", nil), authority, hosts, router)
	for name, secret := range first {
		for file, data := range secret.Data {
			if kept := again[name].Data[file]; !bytes.Equal(kept, data) && file != "host-n2.example.org.crt" && file != "host-n2.example.org.key" {
				t.Errorf("%s of %s was made anew", file, name)
			}
		}
	}
	found := again["lagan-host-certificates"].Data
	signed(t, authority.Data["ca.crt"], found["host-n3.crt"], "n3.host.lagan")
	if len(found) != 5 {
		t.Errorf("%d files, of two hosts", len(found))
	}
	// Without its authority nothing that it signed is kept.
	anew := secretsIn(t, `{}`, n1, hosts, router)
	signed(t, anew["lagan-authority"].Data["ca.crt"], anew["lagan-host-certificates"].Data["host-n1.crt"], "n1.host.lagan")
	signed(t, anew["lagan-host-certificates"].Data["ca.crt"], anew["lagan-router-certificate"].Data["router.crt"], "router.lagan")
}

func TestOnlyNodesThatAreMeantAreHosts(t *testing.T) {
	yes, no := node("n1", map[string]string{"storage": "yes"}), node("n2", map[string]string{"storage": "no"})
	found := secretsIn(t, `{host: {nodeSelector: {storage: "yes"}}}`, yes, no)["lagan-host-certificates"].Data
	if len(found) != 3 || found["host-n1.key"] == nil {
		t.Errorf("%d files", len(found))
	}
	// Those that are named count, whatever is there.
	found = secretsIn(t, `{hosts: [{name: n7}]}`, yes, no)["lagan-host-certificates"].Data
	if len(found) != 3 || found["host-n7.key"] == nil {
		t.Errorf("%d files", len(found))
	}
}
