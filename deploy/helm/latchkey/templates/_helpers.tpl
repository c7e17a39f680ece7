{{- define "latchkey.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 57 | trimSuffix "-" -}}
{{- end -}}

{{- /* So long that the longest name made of it, which is the metrics Service's, has the 63 characters of a label. */ -}}
{{- define "latchkey.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 49 | trimSuffix "-" -}}
{{- else if contains (include "latchkey.name" .) .Release.Name -}}
{{- .Release.Name | trunc 49 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "latchkey.name" .) | trunc 49 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- /* Where all objects of the chart that have a namespace are. */ -}}
{{- define "latchkey.namespace" -}}
{{- default .Release.Namespace .Values.namespaceOverride -}}
{{- end -}}

{{- /* The DaemonSet, its configuration and its rights. */ -}}
{{- define "latchkey.agent" -}}
{{- include "latchkey.fullname" . }}-agent
{{- end -}}

{{- define "latchkey.serviceAccountName" -}}
{{- default (include "latchkey.agent" .) .Values.serviceAccount.name -}}
{{- end -}}

{{- /* The agent's user, as the API server knows it. */ -}}
{{- define "latchkey.user" -}}
system:serviceaccount:{{ include "latchkey.namespace" . }}:{{ include "latchkey.serviceAccountName" . }}
{{- end -}}

{{- define "latchkey.selectorLabels" -}}
app.kubernetes.io/name: {{ include "latchkey.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: agent
{{- end -}}

{{- define "latchkey.labels" -}}
{{ include "latchkey.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: latchkey
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version | replace "+" "_" }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- /* The same for an object with more of them, each once: .more goes before commonLabels, and these before .own. */ -}}
{{- define "latchkey.labelsWith" -}}
{{- toYaml (merge (dict) (default (dict) .more) (fromYaml (include "latchkey.labels" .root)) (default (dict) .own)) -}}
{{- end -}}

{{- /* The annotations of an object that has no others. */ -}}
{{- define "latchkey.annotations" -}}
{{- with .Values.commonAnnotations }}
  annotations:
    {{- toYaml . | nindent 4 }}
{{- end }}
{{- end -}}

{{- /* What is set, and the startup taint: only the agent takes that off, so it has to come before. */ -}}
{{- define "latchkey.tolerations" -}}
{{- $tolerations := default (list) .Values.tolerations -}}
{{- if and .Values.startupTaint.enabled (not (has (dict "operator" "Exists") $tolerations)) -}}
{{- $tolerations = append $tolerations (dict "key" .Values.startupTaint.key "operator" "Exists") -}}
{{- end -}}
{{- toYaml $tolerations -}}
{{- end -}}

{{- define "latchkey.image" -}}
{{- with .Values.image -}}
{{- with .registry }}{{ . }}/{{ end -}}
{{ .repository }}
{{- if .digest }}@{{ .digest }}{{ else }}:{{ default $.Chart.AppVersion .tag }}{{ end -}}
{{- end -}}
{{- end -}}

{{- /* The backends: what the values name, else one for AWS. */ -}}
{{- define "latchkey.backends" -}}
{{- toJson (default (dict "aws" (dict)) .Values.config.backends) -}}
{{- end -}}

{{- define "latchkey.backendType" -}}
{{- default .name .backend.type -}}
{{- end -}}

{{- /* The audiences that the clouds of these backends want in a pod's token, as a sorted JSON list: empty without a cloud.
No other place knows the types, so that one that is new cannot go without. */ -}}
{{- define "latchkey.audiences" -}}
{{- $audiences := list -}}
{{- range $name, $backend := fromJson (include "latchkey.backends" .) -}}
{{- $type := include "latchkey.backendType" (dict "name" $name "backend" $backend) -}}
{{- if eq $type "aws" -}}
{{- $audiences = concat $audiences (default (list "sts.amazonaws.com") $backend.audiences) -}}
{{- else if eq $type "azure" -}}
{{- $audiences = append $audiences (default "api://AzureADTokenExchange" $backend.audience) -}}
{{- else if eq $type "gcp" -}}
{{- if not $backend.provider -}}
{{- fail (printf "config.backends.%s does not say to whom pods' tokens are made out: set config.backends.%s.provider (docs/clouds/gcp.md)" $name $name) -}}
{{- else if hasPrefix "//" $backend.provider -}}
{{- $audiences = append $audiences (printf "https:%s" $backend.provider) -}}
{{- else -}}
{{- $audiences = append $audiences $backend.provider -}}
{{- end -}}
{{- else if not (has $type (list "file" "pass")) -}}
{{- fail (printf "config.backends.%s has no type, and its name is none: set config.backends.%s.type to aws, azure, file, gcp or pass" $name $name) -}}
{{- end -}}
{{- end -}}
{{- toJson ($audiences | uniq | sortAlpha) -}}
{{- end -}}

{{- /* One value of the configuration: JSON's strings and lists are TOML's too, its numbers are not. */ -}}
{{- define "latchkey.tomlValue" -}}
{{- if or (kindIs "float64" .) (kindIs "int" .) (kindIs "int64" .) -}}{{ int64 . }}{{- else -}}{{ toJson . }}{{- end -}}
{{- end -}}

{{- /* A table and the tables in it; .path is empty for the document itself. Maps are walked in the order of their keys. */ -}}
{{- define "latchkey.toml" -}}
{{- $path := .path -}}
{{- $tables := dict -}}
{{- $own := list -}}
{{- range $key, $value := .table -}}
{{- if kindIs "map" $value -}}
{{- $_ := set $tables $key $value -}}
{{- else if not (kindIs "invalid" $value) -}}
{{- $own = append $own (printf "%s = %s" $key (include "latchkey.tomlValue" $value)) -}}
{{- end -}}
{{- end -}}
{{- if and $path (or $own (empty $tables)) }}

[{{ $path }}]
{{- end }}
{{- range $own }}
{{ . }}
{{- end }}
{{- range $key, $table := $tables }}
{{- include "latchkey.toml" (dict "path" (ternary $key (printf "%s.%s" $path $key) (empty $path)) "table" $table) }}
{{- end }}
{{- end -}}

{{- /* The directory of the CSI plugin, the same in both containers and on the node. */ -}}
{{- define "latchkey.pluginDirectory" -}}
{{ .Values.kubeletRootDir }}/plugins/csi.latchkey.dev
{{- end -}}

{{- /* How many seconds a duration of one number and one unit has, rounded up; of any other, which the agent may still
take, nothing. */ -}}
{{- define "latchkey.seconds" -}}
{{- if regexMatch "^[0-9]+(ms|s|m|h)$" . -}}
{{- $unit := get (dict "ms" 1 "s" 1000 "m" 60000 "h" 3600000) (regexFind "[a-z]+$" .) -}}
{{- div (add (mul (regexFind "^[0-9]+" .) $unit) 999) 1000 -}}
{{- end -}}
{{- end -}}

{{- /* What Kubernetes has since when, where these values use it: nothing else would say that it is not there. */ -}}
{{- define "latchkey.validateVersion" -}}
{{- $version := default .Capabilities.KubeVersion.Version .Values.kubeVersion -}}
{{- range list
  (dict "since" "1.22" "used" (and (ne .Values.updateStrategy.type "OnDelete") (dig "rollingUpdate" "maxSurge" 0 .Values.updateStrategy)) "what" "the DaemonSet's maxSurge" "advice" "set updateStrategy.rollingUpdate.maxSurge: 0 and maxUnavailable: 1")
  (dict "since" "1.26" "used" (eq .Values.delivery "csi") "what" "a kubelet that the CSI driver can serve" "advice" "set delivery: hostPath and rbac.tokens: namespace (docs/operations.md, Older clusters)")
  (dict "since" "1.30" "used" .Values.admissionPolicy.create "what" "ValidatingAdmissionPolicy" "advice" "set admissionPolicy.create: false (docs/operations.md, Older clusters)")
  (dict "since" "1.30" "used" .Values.appArmorProfile "what" "appArmorProfile" "advice" "leave appArmorProfile out")
  (dict "since" "1.35" "used" .Values.csi.tokensInSecrets "what" "serviceAccountTokenInSecrets" "advice" "set csi.tokensInSecrets: false")
  (dict "since" "1.35" "used" (eq .Values.rbac.tokens "node") "what" "constrained impersonation" "advice" "set rbac.tokens: none, or namespace with delivery: hostPath")
-}}
{{- if and .used (semverCompare (printf "<%s.0-0" .since) $version) -}}
{{- fail (printf "Kubernetes has %s since %s, and this cluster is %s: %s; or, if it is newer than that, say so in kubeVersion" .what .since $version .advice) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- /* What no schema can say: each of these the agent or the API server would refuse, or nobody would until it is too late. */ -}}
{{- define "latchkey.validate" -}}
{{- include "latchkey.validateVersion" . -}}
{{- with .Values.image -}}
{{- if and .tag .digest -}}
{{- fail (printf "image.tag is %s, and beside image.digest the runtime looks at no tag: set image.digest: \"\" for the tag, or leave image.tag out" .tag) -}}
{{- end -}}
{{- end -}}
{{- $backends := fromJson (include "latchkey.backends" .) -}}
{{- $names := keys $backends | sortAlpha -}}
{{- /* What is also said to the agent, past its file. */ -}}
{{- $aside := printf "%s %s" (toJson .Values.extraEnv) (toJson .Values.extraArgs) | lower -}}
{{- $audiences := fromJsonArray (include "latchkey.audiences" .) -}}
{{- with .Values.config.default_backend -}}
{{- if not (hasKey $backends .) -}}
{{- fail (printf "config.default_backend is %s, and config.backends has %s alone" . (join ", " $names)) -}}
{{- end -}}
{{- else -}}
{{- if not (or (eq (len $backends) 1) (hasKey $backends "aws") (contains "default_backend" $aside)) -}}
{{- fail (printf "config.backends has several, and none is called aws, which would be the default: set config.default_backend to one of %s" (join ", " $names)) -}}
{{- end -}}
{{- end -}}
{{- if and $audiences (eq .Values.delivery "hostPath") (eq .Values.rbac.tokens "none") -}}
{{- fail "rbac.tokens is none, and delivery hostPath brings no tokens either, so no pod could read from a cloud: set rbac.tokens to namespace, and grant tokens in each namespace (deploy/examples/hostpath.yaml), or to node (Kubernetes 1.36)" -}}
{{- end -}}
{{- if and .Values.networkPolicy.enabled (not .Values.networkPolicy.metricsFrom) (or .Values.metrics.podMonitor.enabled .Values.metrics.serviceMonitor.enabled) -}}
{{- fail "networkPolicy lets nobody in, also not the one who is to scrape: set networkPolicy.metricsFrom to where your Prometheus runs" -}}
{{- end -}}
{{- range $name, $monitor := pick .Values.metrics "podMonitor" "serviceMonitor" -}}
{{- if $monitor.enabled -}}
{{- $interval := include "latchkey.seconds" (toString $monitor.interval) | int64 -}}
{{- if and $.Values.metrics.prometheusRule.enabled (gt $interval 60) -}}
{{- fail (printf "the alerts of metrics.prometheusRule look at what two minutes bring, and would miss it: set metrics.%s.interval to 1m or less" $name) -}}
{{- end -}}
{{- if and $interval (gt (include "latchkey.seconds" (toString $monitor.scrapeTimeout) | int64) $interval) -}}
{{- fail (printf "a scrape may not take longer than the time to the next: set metrics.%s.scrapeTimeout to at most its interval" $name) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if and .Values.metrics.podMonitor.enabled .Values.metrics.serviceMonitor.enabled -}}
{{- fail "metrics.podMonitor and metrics.serviceMonitor are both enabled, so each agent would be scraped twice, and alerts would count it twice: enable one" -}}
{{- end -}}
{{- if and (eq .Values.dnsPolicy "None") (not (default (dict) .Values.dnsConfig).nameservers) -}}
{{- fail "dnsPolicy is None, and dnsConfig names no resolver: set dnsConfig.nameservers" -}}
{{- end -}}
{{- with .Values.appArmorProfile -}}
{{- if ne (eq (default "" .type) "Localhost") (not (empty .localhostProfile)) -}}
{{- fail "appArmorProfile.localhostProfile goes with the type Localhost, and that type with it alone: set both or neither" -}}
{{- end -}}
{{- end -}}
{{- if ne .Values.updateStrategy.type "OnDelete" -}}
{{- $update := default (dict) .Values.updateStrategy.rollingUpdate -}}
{{- $surge := default 0 $update.maxSurge | toString | trimSuffix "%" | int -}}
{{- /* One is what the API server takes where nothing is said. */ -}}
{{- $unavailable := ternary $update.maxUnavailable 1 (hasKey $update "maxUnavailable") | toString | trimSuffix "%" | int -}}
{{- if and $surge $unavailable -}}
{{- fail "updateStrategy.rollingUpdate has both maxSurge and maxUnavailable, of which a DaemonSet has one: set maxSurge: 0 beside maxUnavailable, or maxUnavailable: 0" -}}
{{- end -}}
{{- if not (or $surge $unavailable) -}}
{{- fail "updateStrategy.rollingUpdate lets no node be updated: set maxSurge: 1, or maxUnavailable: 1 beside maxSurge: 0" -}}
{{- end -}}
{{- end -}}
{{- with include "latchkey.seconds" (dig "limits" "drain" "20s" .Values.config) -}}
{{- $least := add 2 . -}}
{{- if lt (int64 $.Values.terminationGracePeriodSeconds) $least -}}
{{- fail (printf "the kubelet would end an agent that drains, for config.limits.drain and up to two seconds: set terminationGracePeriodSeconds to at least %d, or config.limits.drain to less" $least) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "latchkey.config" -}}
{{- include "latchkey.validate" . -}}
{{- $config := deepCopy .Values.config -}}
{{- $backends := fromJson (include "latchkey.backends" .) -}}
{{- range $name, $backend := $backends -}}
{{- $_ := set $backend "type" (include "latchkey.backendType" (dict "name" $name "backend" $backend)) -}}
{{- end -}}
{{- $_ := set $config "backends" $backends -}}
{{- if not $config.default_backend -}}
{{- $_ := set $config "default_backend" (ternary (keys $backends | first) "aws" (eq (len $backends) 1)) -}}
{{- end -}}
{{- $listen := dict "admin" (printf "%s:%d" .Values.admin.address (int .Values.admin.port)) -}}
{{- $_ := set $config "listen" (merge $listen (default (dict) $config.listen)) -}}
{{- $kubernetes := dict -}}
{{- if eq .Values.rbac.tokens "node" -}}
{{- $_ := set $kubernetes "impersonate_node" true -}}
{{- end -}}
{{- if .Values.startupTaint.enabled -}}
{{- $_ := set $kubernetes "startup_taint" .Values.startupTaint.key -}}
{{- end -}}
{{- if eq .Values.delivery "csi" -}}
{{- $csi := dict "enabled" true "directory" (include "latchkey.pluginDirectory" .) -}}
{{- $_ := set $config "csi" (merge $csi (default (dict) $config.csi)) -}}
{{- end -}}
{{- if $kubernetes -}}
{{- $_ := set $config "kubernetes" $kubernetes -}}
{{- end -}}
{{- include "latchkey.toml" (dict "path" "" "table" $config) | trim -}}
{{- end -}}
