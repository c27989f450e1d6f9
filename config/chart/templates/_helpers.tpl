{{- /* An image: the common registry, if there is one, in the place of its own. */ -}}
{{- define "atoll.image" -}}
{{- $registry := .root.Values.imageRegistry | default .image.registry | trimSuffix "/" -}}
{{- $name := printf "%s/%s" $registry .image.repository -}}
{{- if .image.digest -}}
{{- printf "%s@%s" $name .image.digest -}}
{{- else -}}
{{- printf "%s:%s" $name (.image.tag | default .root.Chart.AppVersion) -}}
{{- end -}}
{{- end -}}

{{- define "atoll.pullSecrets" -}}
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
{{- range . }}
- name: {{ . }}
{{- end }}
{{- end }}
{{- end -}}

{{- /* VERSION=IMAGE,… */ -}}
{{- define "atoll.versions" -}}
{{- $pairs := list -}}
{{- range $version, $image := . -}}
{{- $pairs = append $pairs (printf "%s=%s" $version $image) -}}
{{- end -}}
{{- join "," $pairs -}}
{{- end -}}

{{- /* Where a process listens for metrics and probes, unless that is its default. */ -}}
{{- define "atoll.http" -}}
{{- if ne .root.Values.ipFamily "IPv4" -}}
- {name: ATOLL_HTTP, value: "[::]:{{ .port }}"}
{{- end -}}
{{- end -}}

{{- /* The operator's configuration; servers' pods have the pull secrets too, unless others are named. */ -}}
{{- define "atoll.operatorConfig" -}}
{{- $config := deepCopy .Values.operator.config -}}
{{- if .Values.imagePullSecrets -}}
{{- $secrets := list -}}
{{- range .Values.imagePullSecrets -}}
{{- $secrets = append $secrets (dict "name" .) -}}
{{- end -}}
{{- $_ := set $config "pods" (merge ($config.pods | default dict) (dict "imagePullSecrets" $secrets)) -}}
{{- end -}}
{{- toYaml $config -}}
{{- end -}}
