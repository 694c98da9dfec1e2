package main

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	groups "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumegroupsnapshot/v1"
	snapshots "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	apps "k8s.io/api/apps/v1"
	core "k8s.io/api/core/v1"
	network "k8s.io/api/networking/v1"
	policy "k8s.io/api/policy/v1"
	rbac "k8s.io/api/rbac/v1"
	storage "k8s.io/api/storage/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/yaml"
)

// Kinds of others, as far as the chart uses them; a field that is not here is refused.
type certificate struct {
	meta.TypeMeta `json:",inline"`
	Metadata      meta.ObjectMeta `json:"metadata"`
	Spec          struct {
		SecretName string   `json:"secretName"`
		DNSNames   []string `json:"dnsNames"`
		Usages     []string `json:"usages"`
		PrivateKey struct {
			Algorithm      string `json:"algorithm"`
			Size           int    `json:"size"`
			RotationPolicy string `json:"rotationPolicy"`
		} `json:"privateKey"`
		IssuerRef struct {
			Name  string `json:"name"`
			Kind  string `json:"kind"`
			Group string `json:"group"`
		} `json:"issuerRef"`
	} `json:"spec"`
}

type serviceMonitor struct {
	meta.TypeMeta `json:",inline"`
	Metadata      meta.ObjectMeta `json:"metadata"`
	Spec          struct {
		Selector  meta.LabelSelector `json:"selector"`
		Endpoints []struct {
			Port        string `json:"port"`
			Interval    string `json:"interval"`
			Relabelings []struct {
				SourceLabels []string `json:"sourceLabels"`
				TargetLabel  string   `json:"targetLabel"`
			} `json:"relabelings"`
		} `json:"endpoints"`
	} `json:"spec"`
}

type prometheusRule struct {
	meta.TypeMeta `json:",inline"`
	Metadata      meta.ObjectMeta `json:"metadata"`
	Spec          struct {
		Groups []struct {
			Name  string `json:"name"`
			Rules []struct {
				Alert       string            `json:"alert"`
				Expr        string            `json:"expr"`
				For         string            `json:"for"`
				Labels      map[string]string `json:"labels"`
				Annotations map[string]string `json:"annotations"`
			} `json:"rules"`
		} `json:"groups"`
	} `json:"spec"`
}

// The objects of one rendering, each read as the API server reads it: no field that it does not know.
type objects struct {
	t   *testing.T
	all []any
}

var codecs = func() serializer.CodecFactory {
	for _, add := range []func(*runtime.Scheme) error{snapshots.AddToScheme, groups.AddToScheme} {
		if err := add(scheme.Scheme); err != nil {
			panic(err)
		}
	}
	return serializer.NewCodecFactory(scheme.Scheme, serializer.EnableStrict)
}()

func read(t *testing.T, values string) objects {
	t.Helper()
	texts, err := render(valuesOf(t, values))
	if err != nil {
		t.Fatalf("%s: %v", values, err)
	}
	return decoded(t, texts)
}

func decoded(t *testing.T, texts []string) objects {
	t.Helper()
	found := objects{t: t}
	for _, text := range texts {
		object, err := decode(text)
		if err != nil {
			t.Errorf("%v in\n%s", err, text)
			continue
		}
		found.all = append(found.all, object)
	}
	return found
}

func decode(text string) (any, error) {
	var kind meta.TypeMeta
	if err := yaml.Unmarshal([]byte(text), &kind); err != nil {
		return nil, err
	}
	own := map[string]any{
		"cert-manager.io/v1/Certificate":          &certificate{},
		"monitoring.coreos.com/v1/ServiceMonitor": &serviceMonitor{},
		"monitoring.coreos.com/v1/PrometheusRule": &prometheusRule{},
	}
	if object, is := own[kind.APIVersion+"/"+kind.Kind]; is {
		return object, yaml.UnmarshalStrict([]byte(text), object)
	}
	object, _, err := codecs.UniversalDeserializer().Decode([]byte(text), nil, nil)
	return object, err
}

// of gives the objects of one type, by name.
func of[T meta.Object](found objects) map[string]T {
	named := map[string]T{}
	for _, object := range found.all {
		if object, is := object.(T); is {
			if _, twice := named[object.GetName()]; twice {
				found.t.Errorf("%T %s is there twice", object, object.GetName())
			}
			named[object.GetName()] = object
		}
	}
	return named
}

func TestEveryObjectIsWhatTheServerExpects(t *testing.T) {
	for variant, values := range variants {
		t.Run(variant, func(t *testing.T) {
			found := read(t, values)
			if len(found.all) < 15 {
				t.Errorf("only %d objects", len(found.all))
			}
			checkPods(t, found)
			checkSelectors(t, found)
		})
	}
}

func podsOf(found objects) map[string]core.PodTemplateSpec {
	pods := map[string]core.PodTemplateSpec{}
	for name, object := range of[*apps.DaemonSet](found) {
		pods[name] = object.Spec.Template
	}
	for name, object := range of[*apps.Deployment](found) {
		pods[name] = object.Spec.Template
	}
	return pods
}

// Whatever a pod names is there.
func checkPods(t *testing.T, found objects) {
	pods := podsOf(found)
	if len(pods) != 2 {
		t.Fatalf("%d kinds of pods", len(pods))
	}
	configs, secrets := of[*core.ConfigMap](found), of[*core.Secret](found)
	accounts := of[*core.ServiceAccount](found)
	for name, pod := range pods {
		if accounts[pod.Spec.ServiceAccountName] == nil {
			t.Errorf("%s: no account %q", name, pod.Spec.ServiceAccountName)
		}
		volumes := map[string]bool{}
		for _, volume := range pod.Spec.Volumes {
			volumes[volume.Name] = true
			if source := volume.ConfigMap; source != nil && configs[source.Name] == nil {
				t.Errorf("%s: no configuration %q", name, source.Name)
			}
			if source := volume.Secret; source != nil && len(secrets) > 0 && secrets[source.SecretName] == nil {
				t.Errorf("%s: no secret %q", name, source.SecretName)
			}
		}
		for _, container := range pod.Spec.Containers {
			for _, mount := range container.VolumeMounts {
				if !volumes[mount.Name] {
					t.Errorf("%s: no volume %q", name, mount.Name)
				}
			}
			if strings.Count(container.Image, ":") == 0 || strings.Contains(container.Image, "//") {
				t.Errorf("%s: image %q", name, container.Image)
			}
		}
	}
}

// Whatever selects pods selects some.
func checkSelectors(t *testing.T, found objects) {
	selects := func(what string, selector labels.Selector) {
		for _, pod := range podsOf(found) {
			if selector.Matches(labels.Set(pod.Labels)) {
				return
			}
		}
		t.Errorf("%s selects no pod", what)
	}
	selected := func(what string, selector *meta.LabelSelector) {
		parsed, err := meta.LabelSelectorAsSelector(selector)
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		selects(what, parsed)
	}
	for name, object := range of[*apps.DaemonSet](found) {
		selected(name, object.Spec.Selector)
	}
	for name, object := range of[*apps.Deployment](found) {
		selected(name, object.Spec.Selector)
	}
	for name, object := range of[*policy.PodDisruptionBudget](found) {
		selected(name, object.Spec.Selector)
	}
	for name, object := range of[*network.NetworkPolicy](found) {
		selected(name, &object.Spec.PodSelector)
	}
	for name, object := range of[*core.Service](found) {
		selects(name, labels.SelectorFromSet(object.Spec.Selector))
	}
}

func TestDriverObject(t *testing.T) {
	driver := of[*storage.CSIDriver](read(t, `{}`))["lagan.csi"]
	if driver == nil {
		t.Fatal("there is none")
	}
	spec := driver.Spec
	if !*spec.AttachRequired || !*spec.StorageCapacity || !*spec.SELinuxMount || *spec.PodInfoOnMount {
		t.Errorf("%+v", spec)
	}
	if *spec.FSGroupPolicy != storage.FileFSGroupPolicy || !slices.Equal(spec.VolumeLifecycleModes, []storage.VolumeLifecycleMode{storage.VolumeLifecyclePersistent}) {
		t.Errorf("%+v", spec)
	}
}

// A router may do nothing on its node; a host has one container, and nothing that the API server would obey.
func TestWhatPodsMayDo(t *testing.T) {
	pods := podsOf(read(t, `{}`))
	router, host := pods["lagan-router"].Spec, pods["lagan-host"].Spec
	if len(router.Containers) != 5 || len(host.Containers) != 1 || len(host.InitContainers) != 0 {
		t.Errorf("%d and %d containers", len(router.Containers), len(host.Containers))
	}
	if !*router.SecurityContext.RunAsNonRoot || router.SecurityContext.SeccompProfile.Type != core.SeccompProfileTypeRuntimeDefault {
		t.Errorf("%+v", router.SecurityContext)
	}
	for _, container := range router.Containers {
		may := container.SecurityContext
		if *may.AllowPrivilegeEscalation || !*may.ReadOnlyRootFilesystem || !slices.Equal(may.Capabilities.Drop, []core.Capability{"ALL"}) {
			t.Errorf("%s: %+v", container.Name, may)
		}
	}
	for _, volume := range router.Volumes {
		if volume.HostPath != nil {
			t.Errorf("a router sees %s of its node", volume.HostPath.Path)
		}
	}
	if *host.AutomountServiceAccountToken || host.HostPID || host.HostIPC || host.HostNetwork {
		t.Errorf("%+v", host)
	}
	if !*host.Containers[0].SecurityContext.ReadOnlyRootFilesystem {
		t.Error("a host's root can be written")
	}
}

func TestRightsAreFew(t *testing.T) {
	found := read(t, `{}`)
	rules := of[*rbac.ClusterRole](found)["lagan-router"].Rules
	for _, rule := range append(rules, of[*rbac.Role](found)["lagan-router"].Rules...) {
		said := fmt.Sprint(rule.APIGroups, rule.Resources, rule.Verbs)
		if strings.Contains(said, "*") || slices.Contains(rule.Resources, "secrets") || len(rule.Verbs) == 0 {
			t.Error(said)
		}
	}
	for name, binding := range of[*rbac.ClusterRoleBinding](found) {
		if len(binding.Subjects) != 1 || binding.Subjects[0].Name != "lagan-router" {
			t.Errorf("%s: %+v", name, binding.Subjects)
		}
	}
}

// Without snapshots nothing of them is asked of a cluster that may not know them.
func TestWithoutSnapshots(t *testing.T) {
	texts, err := render(valuesOf(t, variants["little"]))
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range texts {
		if strings.Contains(text, "snapshot.storage.k8s.io") || strings.Contains(text, "csi-snapshotter") {
			t.Error(text)
		}
	}
}

// A pool has a class, unless one of its name is given.
func TestClasses(t *testing.T) {
	classes := of[*storage.StorageClass](read(t, variants["pools"]))
	for _, pool := range []string{"big", "inner", "fast", "disk"} {
		class := classes["lagan-"+pool]
		if class == nil || class.Parameters["pool"] != pool || !*class.AllowVolumeExpansion {
			t.Errorf("%s: %+v", pool, class)
		}
	}
	if *classes["lagan-fast"].VolumeBindingMode != storage.VolumeBindingImmediate || *classes["lagan-big"].VolumeBindingMode != storage.VolumeBindingWaitForFirstConsumer {
		t.Error("the wrong binding")
	}
}

// A chart that signs by itself gives every host that is named a certificate, and no pod the authority's key.
func TestCertificates(t *testing.T) {
	found := read(t, variants["two hosts"])
	secrets := of[*core.Secret](found)
	hosts := secrets["lagan-host-certificates"].Data
	for _, file := range []string{"ca.crt", "host-n1.crt", "host-n1.key", "host-n2.example.org.crt", "host-n2.example.org.key"} {
		if len(hosts[file]) == 0 {
			t.Errorf("no %s", file)
		}
	}
	if len(secrets["lagan-authority"].Data["ca.key"]) == 0 || len(secrets["lagan-router-certificate"].Data["router.key"]) == 0 {
		t.Error("keys are missing")
	}
	for name, pod := range podsOf(found) {
		for _, volume := range pod.Spec.Volumes {
			if volume.Secret != nil && volume.Secret.SecretName == "lagan-authority" {
				t.Errorf("%s is given the authority", name)
			}
		}
	}
}
