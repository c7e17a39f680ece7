{{- define "latchkey.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 57 | trimSuffix "-" -}}
{{- end -}}

{{- define "latchkey.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 57 | trimSuffix "-" -}}
{{- else if contains (include "latchkey.name" .) .Release.Name -}}
{{- .Release.Name | trunc 57 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "latchkey.name" .) | trunc 57 | trimSuffix "-" -}}
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

{{- define "latchkey.image" -}}
{{- with .Values.image -}}
{{- with .registry }}{{ . }}/{{ end -}}
{{ .repository }}:{{ default $.Chart.AppVersion .tag }}
{{- with .digest }}@{{ . }}{{ end -}}
{{- end -}}
{{- end -}}

{{- /* The backends: what the values name, else one for AWS. */ -}}
{{- define "latchkey.backends" -}}
{{- toJson (default (dict "aws" (dict)) .Values.config.backends) -}}
{{- end -}}

{{- define "latchkey.backendType" -}}
{{- default .name .backend.type -}}
{{- end -}}

{{- /* The audiences that the clouds of these backends want in a pod's token, as a sorted JSON list. */ -}}
{{- define "latchkey.audiences" -}}
{{- $audiences := list -}}
{{- range $name, $backend := fromJson (include "latchkey.backends" .) -}}
{{- $type := include "latchkey.backendType" (dict "name" $name "backend" $backend) -}}
{{- if eq $type "aws" -}}
{{- $audiences = concat $audiences (default (list "sts.amazonaws.com") $backend.audiences) -}}
{{- else if eq $type "azure" -}}
{{- $audiences = append $audiences (default "api://AzureADTokenExchange" $backend.audience) -}}
{{- else if and (eq $type "gcp") $backend.provider -}}
{{- if hasPrefix "//" $backend.provider -}}
{{- $audiences = append $audiences (printf "https:%s" $backend.provider) -}}
{{- else -}}
{{- $audiences = append $audiences $backend.provider -}}
{{- end -}}
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

{{- /* What no schema can say. */ -}}
{{- define "latchkey.validate" -}}
{{- $cloud := false -}}
{{- range $name, $backend := fromJson (include "latchkey.backends" .) -}}
{{- if has (include "latchkey.backendType" (dict "name" $name "backend" $backend)) (list "aws" "azure" "gcp") -}}
{{- $cloud = true -}}
{{- end -}}
{{- end -}}
{{- if and $cloud (eq .Values.delivery "hostPath") (eq .Values.rbac.tokens "none") -}}
{{- fail "rbac.tokens is none, and delivery hostPath brings no tokens either, so no pod could read from a cloud: set rbac.tokens to namespace, and grant tokens in each namespace (deploy/examples/hostpath.yaml), or to node (Kubernetes 1.36)" -}}
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
